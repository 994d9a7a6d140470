// The adapter of a program as one group of a step has it, for whatever a program does with one adapter at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "program.h"

namespace mobizo::trainer {

// While it lives every B of the program is B + coeff * z(seed), rounded once; then it has the bits of before. What the
// optimizer keeps of earlier updates stays. Nobody else may change the adapter meanwhile.
class Perturbation {
 public:
  // Throws Error, and nothing is changed, if the program does not show where its adapter lies, or memory is short.
  Perturbation(Program& program, int64_t seed, float coeff);
  ~Perturbation();
  Perturbation(const Perturbation&) = delete;
  Perturbation& operator=(const Perturbation&) = delete;

 private:
  void restore();

  Program& program_;
  std::vector<std::vector<float>> before_;
};

}  // namespace mobizo::trainer
