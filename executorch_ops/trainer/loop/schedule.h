// The learning rate of each step.
#pragma once

#include <cstdint>
#include <string>

namespace mobizo::trainer {

// "constant"; "linear" and "cosine" fall from lr at step 0 towards 0 at step `steps`.
class Schedule {
 public:
  // Throws Error, naming the argument, unless name is one of these and lr is finite and at least 0.
  Schedule(const std::string& name, double lr, int64_t steps);

  double lr(int64_t step) const;

 private:
  enum class Kind { kConstant, kLinear, kCosine } kind_;
  double lr_;
  int64_t steps_;
};

}  // namespace mobizo::trainer
