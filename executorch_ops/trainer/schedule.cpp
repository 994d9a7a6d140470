#include "schedule.h"

#include <cmath>

#include "errors.h"

namespace mobizo::trainer {

Schedule::Schedule(const std::string& name, double lr, int64_t steps)
    : kind_(name == "linear"   ? Kind::kLinear
            : name == "cosine" ? Kind::kCosine
                               : Kind::kConstant),
      lr_(lr),
      steps_(steps) {
  if (kind_ == Kind::kConstant && name != "constant") fail("lr_schedule must be constant, linear or cosine, got '", name, "'");
  if (!(lr >= 0 && std::isfinite(lr))) fail("lr must be finite and at least 0, got ", lr);
  if (steps < 1) fail("steps must be at least 1, got ", steps);
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
