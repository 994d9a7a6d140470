#include "selection.h"

#include <cmath>
#include <numeric>

namespace mobizo::trainer {
namespace {

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

bool Selection::keep(const std::vector<double>& losses) {
  const bool finite = std::isfinite(mean(losses));
  is_lowest_ = finite && (lowest_.empty() || mean(losses) < mean(lowest_));
  if (is_lowest_) lowest_ = losses;
  if (!finite || lowest_.empty()) return false;
  const double excess = mean(losses) - mean(lowest_), count = static_cast<double>(losses.size());
  double squares = 0;
  for (size_t row = 0; row < losses.size(); ++row) squares += std::pow(losses[row] - lowest_[row] - excess, 2);
  const double error = losses.size() > 1 ? std::sqrt(squares / (count - 1) / count) : 0;
  return excess <= kDeviations * error;
}

}  // namespace mobizo::trainer
