// From losses to projected gradients: which perturbed copies of the batch a step sees, and what they tell.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mobizo::trainer {

// two_sided: groups 0..q-1 carry +eps, groups q..2q-1 carry -eps. one_sided: group 0 is clean, groups 1..q carry +eps.
// centred: all q groups carry +eps, and each loss is compared with the others' mean.
class Estimator {
 public:
  // Throws Error, naming the argument, unless name is "two_sided", "one_sided" or "centred" and the numbers are in range.
  Estimator(const std::string& name, int64_t queries, double eps, bool normalize);

  int64_t groups() const;
  // The seed of each group, [G], from those of the queries, [q].
  std::vector<int64_t> seeds(const std::vector<int64_t>& query_seeds) const;
  // The signed size of each group's perturbation, [G].
  std::vector<float> coeffs() const;
  // The loss of the model before the update, from losses [G]; but for one_sided, with the curvature along the directions.
  double loss(const std::vector<float>& losses) const;
  // The slope along each query's direction, [q], computed in double from losses [G].
  std::vector<float> projected_gradients(const std::vector<double>& losses) const;

 private:
  enum class Kind { kTwoSided, kOneSided, kCentred };

  Kind kind_;
  int64_t queries_;
  double eps_;
  bool normalize_;
};

}  // namespace mobizo::trainer
