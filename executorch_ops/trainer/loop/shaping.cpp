#include "shaping.h"

#include <algorithm>
#include <cmath>

#include "../files/errors.h"

namespace mobizo::trainer {
namespace {

std::vector<double> standardised(const std::vector<float>& losses) {
  double mean = 0, squares = 0;
  for (const float loss : losses) mean += double{loss} / static_cast<double>(losses.size());
  for (const float loss : losses) squares += (loss - mean) * (loss - mean) / static_cast<double>(losses.size());
  const double spread = std::sqrt(squares);
  const bool equal = std::all_of(losses.begin(), losses.end(), [&](float loss) { return loss == losses.front(); });
  std::vector<double> found(losses.size());
  if (!equal && spread > 0)
    std::transform(losses.begin(), losses.end(), found.begin(), [&](float loss) { return (loss - mean) / spread; });
  return found;
}

std::vector<double> ranked(const std::vector<float>& losses) {
  std::vector<double> found;
  const double most = static_cast<double>(std::max<size_t>(1, losses.size() - 1));
  for (const float loss : losses) {
    const auto below = std::count_if(losses.begin(), losses.end(), [&](float other) { return other < loss; });
    const auto same = std::count(losses.begin(), losses.end(), loss);
    found.push_back((static_cast<double>(below) + static_cast<double>(same - 1) / 2) / most - 0.5);
  }
  return found;
}

}  // namespace

void check_shaping(const std::string& shaping) {
  if (shaping != "none" && shaping != "standardise" && shaping != "rank")
    fail("shaping must be one of none, standardise, rank, got '", shaping, "'");
}

std::vector<double> shaped(const std::vector<float>& losses, const std::string& shaping) {
  const bool finite = std::all_of(losses.begin(), losses.end(), [](float loss) { return std::isfinite(loss); });
  if (finite && shaping == "standardise") return standardised(losses);
  if (finite && shaping == "rank") return ranked(losses);
  return {losses.begin(), losses.end()};
}

}  // namespace mobizo::trainer
