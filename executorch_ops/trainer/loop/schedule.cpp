#include "schedule.h"

#include <cmath>
#include <limits>

#include "../files/errors.h"
#include "../files/update_rule.h"

namespace mobizo::trainer {

Schedule::Schedule(const std::string& name, double lr, int64_t steps)
    : kind_(name == "linear"   ? Kind::kLinear
            : name == "cosine" ? Kind::kCosine
                               : Kind::kConstant),
      lr_(lr),
      steps_(steps) {
  if (kind_ == Kind::kConstant && name != "constant") fail("lr_schedule must be constant, linear or cosine, got '", name, "'");
  check_lr(lr);
  constexpr int64_t kMostSteps = std::numeric_limits<int32_t>::max();
  if (steps < 1 || steps > kMostSteps) fail("steps must be from 1 to ", kMostSteps, ", got ", steps);
}

double Schedule::lr(int64_t step) const {
  constexpr double kPi = 3.14159265358979323846;
  const double done = static_cast<double>(step) / static_cast<double>(steps_);
  switch (kind_) {
    case Kind::kLinear:
      return lr_ * (1 - done);
    case Kind::kCosine:
      return lr_ * (1 + std::cos(kPi * done)) / 2;
    default:
      return lr_;
  }
}

}  // namespace mobizo::trainer
