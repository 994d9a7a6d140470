// Whether a run's loss runs away: too long a step has led to where the slope tells nothing any more.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>

namespace mobizo::trainer {

// The exponential mean of a run's recent losses, over about kWindow steps, and how far it is above its lowest value. A run is
// unsteady when the mean is more than a tenth and more than kDeviations standard deviations of a single loss above the lowest
// it has been, or when kWindow steps in a row were skipped. The standard deviation is the largest that was seen at a lowest
// mean. It is also unsteady when the loss on rows that stay the same, those of validations, is more than kRise times
// what it first was, and more than kRoom above it; or, if that was not above 0, when it is not finite.
// The same losses give the same answers, so a run that is resumed from its journal ends where it would have.
class DivergenceGuard {
 public:
  static constexpr int64_t kWindow = 20;
  static constexpr double kDeviations = 3, kRise = 1.5, kRoom = 0.1;

  // Takes the loss of a step; whether the run is unsteady now. applied: the step was not skipped.
  bool observe(float loss, bool applied);
  // Takes the loss of a validation; whether the run is unsteady now. The first is of the untuned model.
  bool validate(double loss);

  double mean() const { return mean_; }
  double lowest() const { return lowest_; }

 private:
  int64_t steps_ = 0, skipped_ = 0;
  std::optional<double> first_validation_;
  double mean_ = 0, lowest_ = std::numeric_limits<double>::infinity(), variance_ = 0, deviation_ = 0;
};

}  // namespace mobizo::trainer
