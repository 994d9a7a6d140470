#include "estimator.h"

#include <cmath>

#include "../files/errors.h"

namespace mobizo::trainer {
namespace {

// In the order of mobizo_kernels/zo/estimators.py, by additions of halves.
double sum_of(std::vector<double> values) {
  while (values.size() > 1) {
    const size_t half = values.size() / 2;
    for (size_t i = 0; i < half; ++i) values[i] += values[half + i];
    if (values.size() % 2 != 0) values[half] = values.back();
    values.resize(values.size() - half);
  }
  return values.front();
}

double mean_of(const std::vector<double>& values) { return sum_of(values) / static_cast<double>(values.size()); }

// Of a sample: divided by one less than its size.
double standard_deviation(const std::vector<double>& values) {
  const double mean = mean_of(values);
  std::vector<double> squares;
  for (const double value : values) squares.push_back((value - mean) * (value - mean));
  return std::sqrt(sum_of(squares) / static_cast<double>(values.size() - 1));
}

}  // namespace

Estimator::Estimator(const std::string& name, int64_t queries, double eps, bool normalize)
    : kind_(name == "two_sided"   ? Kind::kTwoSided
            : name == "one_sided" ? Kind::kOneSided
                                  : Kind::kCentred),
      queries_(queries),
      eps_(eps),
      normalize_(normalize) {
  if (kind_ == Kind::kCentred && name != "centred")
    fail("estimator must be one of two_sided, one_sided, centred, got '", name, "'");
  if (queries < 1) fail("queries must be at least 1, got ", queries);
  const auto rounded = static_cast<float>(eps);
  if (!(rounded > 0 && std::isfinite(rounded))) fail("eps must be positive and finite in float32, got ", eps);
  if (kind_ == Kind::kCentred && queries < 2) fail("queries must be at least 2 with the centred estimator, got ", queries);
  if (normalize && kind_ == Kind::kOneSided && queries < 2)
    fail("normalize needs at least 2 queries with the one_sided estimator, got ", queries);
}

int64_t Estimator::groups() const {
  switch (kind_) {
    case Kind::kTwoSided:
      return 2 * queries_;
    case Kind::kOneSided:
      return queries_ + 1;
    case Kind::kCentred:
      break;
  }
  return queries_;
}

std::vector<int64_t> Estimator::seeds(const std::vector<int64_t>& query_seeds) const {
  std::vector<int64_t> seeds;
  if (kind_ == Kind::kTwoSided) {
    seeds = query_seeds;
  } else if (kind_ == Kind::kOneSided) {
    seeds = {query_seeds.front()};
  }
  seeds.insert(seeds.end(), query_seeds.begin(), query_seeds.end());
  return seeds;
}

std::vector<float> Estimator::coeffs() const {
  const float eps = static_cast<float>(eps_);
  std::vector<float> coeffs(static_cast<size_t>(groups()), eps);
  if (kind_ == Kind::kTwoSided) {
    for (size_t group = static_cast<size_t>(queries_); group < coeffs.size(); ++group) coeffs[group] = -eps;
  } else if (kind_ == Kind::kOneSided) {
    coeffs.front() = 0.0f;
  }
  return coeffs;
}

double Estimator::loss(const std::vector<float>& losses) const {
  if (kind_ == Kind::kOneSided) return losses.front();
  return mean_of(std::vector<double>(losses.begin(), losses.end()));
}

std::vector<float> Estimator::projected_gradients(const std::vector<double>& all) const {
  const std::vector<double> perturbed(all.begin() + (kind_ == Kind::kOneSided ? 1 : 0), all.end());
  const double scale = normalize_ ? standard_deviation(perturbed) : eps_;
  const double mean = mean_of(perturbed), count = static_cast<double>(queries_);
  const auto difference_of = [&](size_t k) {
    if (kind_ == Kind::kTwoSided) return (perturbed[k] - perturbed[k + static_cast<size_t>(queries_)]) / 2;
    if (kind_ == Kind::kOneSided) return perturbed[k] - all.front();
    const double deviation = perturbed[k] - mean;
    return normalize_ ? deviation : deviation * count / (count - 1);  // from the mean of the other losses
  };
  std::vector<float> gradients;
  for (size_t k = 0; k < static_cast<size_t>(queries_); ++k) {
    const double difference = difference_of(k);
    // Equal losses tell the directions apart in no way: no step, rather than a division by zero.
    gradients.push_back(scale > 0 ? static_cast<float>(difference / scale) : 0.0f);
  }
  return gradients;
}

}  // namespace mobizo::trainer
