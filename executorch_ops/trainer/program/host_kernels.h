// The kernels of csrc/kernels over ExecuTorch's pool, for what the trainer itself does to a LoRA-B.
#pragma once

#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include "../../../csrc/kernels/run.h"
#include "../files/errors.h"
#include "description.h"
#include "runtime.h"

namespace mobizo::trainer {

// ExecuTorch's pool, as csrc/kernels/run.h takes threads.
struct ParallelFor {
  template <typename F>
  void operator()(int64_t begin, int64_t end, int64_t grain, const F& f) const {
    check_threads();
    executorch::extension::parallel_for(begin, end, grain, f);
  }
};

inline const Kernels& kernels() {
  const char* error = nullptr;
  const Kernels* selected = select_kernels(&error);
  if (selected == nullptr) fail(error);
  return *selected;
}

// Of a kernel that moves a LoRA-B, float32, along directions, which have to outlive it.
inline PerturbArgs perturb_args(const AdapterParameter& parameter, float* lora_b, const std::vector<int64_t>& seeds,
                                const std::vector<float>& coeffs, const std::string& distribution) {
  PerturbArgs args{};
  args.param = lora_b;
  args.dtype = DType::kFloat32;
  args.numel = parameter.lora_b[0] * parameter.lora_b[1];
  args.seeds = seeds.data();
  args.coeffs = coeffs.data();
  args.count = static_cast<int64_t>(seeds.size());
  args.stream = parameter.stream;
  args.decay = 1;
  Distribution found{};
  if (!find_distribution(distribution, &found)) fail("distribution must be " MOBIZO_DISTRIBUTIONS ", got '", distribution, "'");
  set_distribution(args, found, /*dimensions=*/2, parameter.lora_b[0]);
  return args;
}

}  // namespace mobizo::trainer
