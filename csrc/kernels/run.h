// How a binding runs the kernels over its own threads; written once for all bindings. parallel_for(begin, end, grain, f) calls
// f(b, e) on disjoint ranges that cover [begin, end). No partition changes a bit of a result.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.h"

namespace mobizo {

constexpr int64_t kNoiseGrain = 8;    // tasks per thread at least: about 10 us of Gaussian noise
constexpr int64_t kShrinkGrain = 24;  // rows per thread at least

template <typename ParallelFor>
void run_noise(const Kernels& k, const NoiseArgs& args, ParallelFor parallel_for) {
  parallel_for(0, flat_tasks(args.numel), kNoiseGrain, [&](int64_t begin, int64_t end) { k.noise(args, begin, end); });
}

// Any kernel that updates a parameter.
template <typename Args, typename ParallelFor>
void run_update(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, ParallelFor parallel_for) {
  parallel_for(0, flat_tasks(args.numel), kNoiseGrain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// The numbers of Adam: each complement is made in double and rounded once.
inline void set_adam(ZoAdamArgs& args, float lr, double beta1, double beta2, double eps) {
  args.lr = lr;
  args.beta1 = static_cast<float>(beta1);
  args.one_minus_beta1 = static_cast<float>(1.0 - beta1);
  args.beta2 = static_cast<float>(beta2);
  args.one_minus_beta2 = static_cast<float>(1.0 - beta2);
  args.eps = static_cast<float>(eps);
}

// The L2 norm of the change that run_update left in args.squared_change, summed in the order of the tasks.
inline float norm_of_change(const PerturbArgs& args) {
  double sum = 0.0;
  for (int64_t task = 0; task < flat_tasks(args.numel); ++task) sum += args.squared_change[task];
  return static_cast<float>(std::sqrt(sum));
}

// Chooses args.tile_columns; everything else in args is set.
template <typename ParallelFor>
void run_mp_lora(const Kernels& k, MpLoraArgs& args, int64_t threads, ParallelFor parallel_for) {
  const int64_t groups = args.groups;
  args.tile_columns = mp_lora_tile_columns(args.out_features, args.rank, groups, threads);
  const int64_t tiles = mp_lora_tiles_per_group(args.out_features, args.tile_columns);
  if (groups % threads == 0 || groups >= 4 * threads) {
    // Whole groups keep every thread busy: one parallel region, and what shrink made is still in cache when expand reads it.
    const int64_t group_rows = args.rows / groups;
    parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        k.mp_lora_shrink(args, group * group_rows, (group + 1) * group_rows);
        k.mp_lora_expand(args, group * tiles, (group + 1) * tiles);
      }
    });
  } else {
    parallel_for(0, args.rows, kShrinkGrain, [&](int64_t begin, int64_t end) { k.mp_lora_shrink(args, begin, end); });
    parallel_for(0, groups * tiles, 1, [&](int64_t begin, int64_t end) { k.mp_lora_expand(args, begin, end); });
  }
}

}  // namespace mobizo
