#include "estimator.h"

#include <cmath>

#include "../files/errors.h"

namespace mobizo::trainer {
namespace {

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

// Of a sample: divided by one less than its size.
double standard_deviation(const std::vector<double>& values) {
  const double mean = mean_of(values);
  double sum = 0;
  for (const double value : values) sum += (value - mean) * (value - mean);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

}  // namespace

Estimator::Estimator(const std::string& name, int64_t queries, double eps, bool normalize)
    : two_sided_(name == "two_sided"), queries_(queries), eps_(eps), normalize_(normalize) {
  if (!two_sided_ && name != "one_sided") fail("estimator must be two_sided or one_sided, got '", name, "'");
  if (queries < 1) fail("queries must be at least 1, got ", queries);
  const auto rounded = static_cast<float>(eps);
  if (!(rounded > 0 && std::isfinite(rounded))) fail("eps must be positive and finite in float32, got ", eps);
  if (normalize && !two_sided_ && queries < 2)
    fail("normalize needs at least 2 queries with the one_sided estimator, got ", queries);
}

std::vector<int64_t> Estimator::seeds(const std::vector<int64_t>& query_seeds) const {
  std::vector<int64_t> seeds;
  if (two_sided_) {
    seeds = query_seeds;
  } else {
    seeds = {query_seeds.front()};
  }
  seeds.insert(seeds.end(), query_seeds.begin(), query_seeds.end());
  return seeds;
}

std::vector<float> Estimator::coeffs() const {
  const float eps = static_cast<float>(eps_);
  std::vector<float> coeffs(static_cast<size_t>(groups()), eps);
  if (two_sided_) {
    for (size_t group = static_cast<size_t>(queries_); group < coeffs.size(); ++group) coeffs[group] = -eps;
  } else {
    coeffs.front() = 0.0f;
  }
  return coeffs;
}

double Estimator::loss(const std::vector<float>& losses) const {
  return two_sided_ ? mean_of(std::vector<double>(losses.begin(), losses.end())) : losses.front();
}

std::vector<float> Estimator::projected_gradients(const std::vector<float>& losses) const {
  const std::vector<double> all(losses.begin(), losses.end());
  const std::vector<double> perturbed(all.begin() + (two_sided_ ? 0 : 1), all.end());
  const double scale = normalize_ ? standard_deviation(perturbed) : eps_;
  std::vector<float> gradients;
  for (size_t k = 0; k < static_cast<size_t>(queries_); ++k) {
    const double opposite = two_sided_ ? perturbed[k + static_cast<size_t>(queries_)] : all.front();
    const double difference = (perturbed[k] - opposite) / (two_sided_ ? 2 : 1);
    // Equal losses tell the directions apart in no way: no step, rather than a division by zero.
    gradients.push_back(scale > 0 ? static_cast<float>(difference / scale) : 0.0f);
  }
  return gradients;
}

}  // namespace mobizo::trainer
