// How a binding runs the kernels over its own threads; written once for all bindings. parallel_for(begin, end, grain, f) calls
// f(b, e) on disjoint ranges that cover [begin, end). No partition changes a bit of a result.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>

#include "kernels.h"

namespace mobizo {

constexpr int64_t kNoiseGrain = 8;     // tasks per thread at least: about 10 us of Gaussian noise
constexpr int64_t kShrinkGrain = 24;   // rows per thread at least
constexpr int64_t kRowsTogether = 64;  // that pass through shrink and expand in turns: they stay in the second-level cache

// Memory for the signs of directions "outer", and args.signs in it; nothing for other distributions. False where there is none.
template <typename Args>
[[nodiscard]] bool allocate_signs(Args& args, int64_t count, std::unique_ptr<uint8_t[]>& memory) {
  if (args.distribution != Distribution::kOuter || args.numel == 0) return true;
  memory.reset(new (std::nothrow) uint8_t[sign_bytes(args.numel / args.columns + args.columns) * count]);
  args.signs = memory.get();
  return memory != nullptr;
}

// Fills them for seeds begin .. end - 1 of `count`; nothing where none were allocated.
template <typename Args>
void draw_signs(const Kernels& k, const Args& args, const int64_t* seeds, int64_t count,
                const std::unique_ptr<uint8_t[]>& memory, int64_t begin, int64_t end) {
  if (memory == nullptr) return;
  k.signs({seeds, count, args.stream, args.numel / args.columns + args.columns, memory.get()}, begin, end);
}

// False, before anything is written, where memory is short; so is run_update.
template <typename ParallelFor>
[[nodiscard]] bool run_noise(const Kernels& k, NoiseArgs args, ParallelFor parallel_for) {
  std::unique_ptr<uint8_t[]> memory;
  if (!allocate_signs(args, 1, memory)) return false;
  draw_signs(k, args, &args.seed, 1, memory, 0, 1);
  parallel_for(0, tasks_of(args), kNoiseGrain, [&](int64_t begin, int64_t end) { k.noise(args, begin, end); });
  return true;
}

// Any kernel that updates a parameter.
template <typename Args, typename ParallelFor>
[[nodiscard]] bool run_update(const Kernels& k, void (*kernel)(const Args&, int64_t, int64_t), Args args,
                              ParallelFor parallel_for) {
  std::unique_ptr<uint8_t[]> memory;
  if (!allocate_signs(args, args.count, memory)) return false;
  if (memory != nullptr)
    parallel_for(0, args.count, kNoiseGrain,
                 [&](int64_t begin, int64_t end) { draw_signs(k, args, args.seeds, args.count, memory, begin, end); });
  parallel_for(0, tasks_of(args), kNoiseGrain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  return true;
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
  for (int64_t task = 0; task < tasks_of(args); ++task) sum += args.squared_change[task];
  return static_cast<float>(std::sqrt(sum));
}

// mp_lora of directions "outer".
template <typename ParallelFor>
void run_mp_lora_outer(const Kernels& k, MpLoraArgs& args, int64_t threads, ParallelFor parallel_for) {
  args.tile_columns = mp_lora_outer_columns(args);
  const int64_t tiles = mp_lora_tiles(args.out_features, args.tile_columns);
  args.panel = args.shrunk + args.rows * args.rank;
  args.slopes = args.panel + tiles * args.tile_columns * args.rank;
  auto* signs = reinterpret_cast<uint8_t*>(args.slopes + args.rows);
  args.signs = signs;
  const SignsArgs draw{args.seeds, args.units, args.stream, args.out_features + args.rank, signs};
  parallel_for(0, args.units, kNoiseGrain, [&](int64_t begin, int64_t end) { k.signs(draw, begin, end); });
  parallel_for(0, tiles, kNoiseGrain, [&](int64_t begin, int64_t end) { k.mp_lora_pack(args, begin, end); });
  const auto shrink = [&](int64_t begin, int64_t end) {
    k.mp_lora_shrink(args, begin, end);
    k.mp_lora_slopes(args, begin, end);
  };
  if (args.rows >= threads * kShrinkGrain) {  // whole rows keep every thread busy
    parallel_for(0, args.rows, kShrinkGrain, [&](int64_t first, int64_t last) {
      for (int64_t begin = first; begin < last; begin += kRowsTogether) {
        const int64_t end = std::min(last, begin + kRowsTogether);
        shrink(begin, end);
        k.mp_lora_outer(args, begin, end, 0, tiles);
      }
    });
  } else {
    parallel_for(0, args.rows, kShrinkGrain, shrink);
    parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) { k.mp_lora_outer(args, 0, args.rows, begin, end); });
  }
}

// Chooses args.units and args.tile_columns and places what is in args.scratch; everything else in args is set.
template <typename ParallelFor>
void run_mp_lora(const Kernels& k, MpLoraArgs& args, int64_t threads, ParallelFor parallel_for) {
  const int64_t units = args.units = mp_lora_units(args.seeds, args.groups);
  args.shrunk = args.scratch;
  const bool perturbed = std::any_of(args.coeffs, args.coeffs + args.groups, [](float c) { return c != 0.0f; });
  if (args.distribution == Distribution::kOuter && perturbed) return run_mp_lora_outer(k, args, threads, parallel_for);
  if (units % threads == 0 || units >= 4 * threads) {
    // Whole units keep every thread busy: one parallel region, and what shrink made is still in cache when expand reads it.
    args.tile_columns = mp_lora_tile_columns(args.out_features, args.rank, args.out_features);
    const int64_t tiles = mp_lora_tiles(args.out_features, args.tile_columns), group_rows = args.rows / args.groups;
    const int64_t together = std::max<int64_t>(1, kRowsTogether / std::max<int64_t>(1, args.rows / units));
    parallel_for(0, units, 1, [&](int64_t first, int64_t last) {
      for (int64_t begin = first; begin < last; begin += together) {
        const int64_t end = std::min(last, begin + together);
        for (int64_t half = 0; half < args.groups; half += units)
          k.mp_lora_shrink(args, (half + begin) * group_rows, (half + end) * group_rows);
        for (int64_t tile = 0; tile < tiles; ++tile) k.mp_lora_expand(args, tile * units + begin, tile * units + end);
      }
    });
  } else {
    const int64_t steps = (args.out_features + kColumnStep - 1) / kColumnStep;
    args.tile_columns = mp_lora_tile_columns(args.out_features, args.rank, steps * units / (4 * threads));
    const int64_t tasks = mp_lora_tiles(args.out_features, args.tile_columns) * units;
    parallel_for(0, args.rows, kShrinkGrain, [&](int64_t begin, int64_t end) { k.mp_lora_shrink(args, begin, end); });
    parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { k.mp_lora_expand(args, begin, end); });
  }
}

// Chooses args.units and draws into args.signs, which has sign_bytes(out_features + in_features) for each group; everything
// else in args is set.
template <typename ParallelFor>
void run_mp_outer(const Kernels& k, MpOuterArgs& args, uint8_t* signs, ParallelFor parallel_for) {
  args.units = mp_lora_units(args.seeds, args.groups);
  args.signs = signs;
  const SignsArgs draw{args.seeds, args.units, args.stream, args.out_features + args.in_features, signs};
  parallel_for(0, args.units, kNoiseGrain, [&](int64_t begin, int64_t end) { k.signs(draw, begin, end); });
  parallel_for(0, args.rows, kShrinkGrain, [&](int64_t begin, int64_t end) { k.mp_outer(args, begin, end); });
}

}  // namespace mobizo
