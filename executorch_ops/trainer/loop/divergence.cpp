#include "divergence.h"

#include <algorithm>
#include <cmath>

namespace mobizo::trainer {

bool DivergenceGuard::observe(float loss, bool applied) {
  skipped_ = applied ? 0 : skipped_ + 1;
  if (std::isfinite(loss)) {
    ++steps_;
    const double weight = std::max(1.0 / static_cast<double>(steps_), 1.0 / static_cast<double>(kWindow));
    const double ahead = loss - mean_;
    mean_ += weight * ahead;
    variance_ += weight * (ahead * (loss - mean_) - variance_);
    if (steps_ >= kWindow && mean_ < lowest_) {
      lowest_ = mean_;
      deviation_ = std::max(deviation_, std::sqrt(variance_));
    }
  }
  return skipped_ >= kWindow || mean_ - lowest_ > std::max(kDeviations * deviation_, 0.1 * std::abs(lowest_));
}

bool DivergenceGuard::validate(double loss) {
  if (!first_validation_) first_validation_ = loss;
  if (*first_validation_ <= 0) return !std::isfinite(loss);  // of rewards: no share of it means anything
  return !(loss <= std::max(kRise * *first_validation_, *first_validation_ + kRoom));
}

}  // namespace mobizo::trainer
