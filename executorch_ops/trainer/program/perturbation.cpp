#include "perturbation.h"

#include <algorithm>

#include "host_kernels.h"

namespace mobizo::trainer {

Perturbation::Perturbation(Program& program, int64_t seed, float coeff) : program_(program) {
  const Description& d = program.description();
  const std::vector<float*>& lora_b = program.writable_lora_b();
  for (size_t i = 0; i < lora_b.size(); ++i) {
    const std::vector<int64_t>& shape = d.adapter.parameters[i].lora_b;
    before_.emplace_back(lora_b[i], lora_b[i] + shape[0] * shape[1]);
  }
  const Kernels& k = kernels();
  const std::vector<int64_t> seeds{seed};
  const std::vector<float> coeffs{coeff};
  try {
    for (size_t i = 0; i < lora_b.size(); ++i) {
      const PerturbArgs args = perturb_args(d.adapter.parameters[i], lora_b[i], seeds, coeffs, d.distribution);
      if (!run_update(k, k.perturb, args, ParallelFor{})) fail("there is not enough memory for the directions");
    }
  } catch (...) {
    restore();
    throw;
  }
}

Perturbation::~Perturbation() { restore(); }

void Perturbation::restore() {
  const std::vector<float*>& lora_b = program_.writable_lora_b();
  for (size_t i = 0; i < before_.size(); ++i) std::copy(before_[i].begin(), before_[i].end(), lora_b[i]);
}

}  // namespace mobizo::trainer
