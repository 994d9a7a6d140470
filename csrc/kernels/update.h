// What the kernels that update a parameter share: a tile of the sum of directions, and the write that measures the change.
//
// A task's elements fit the first-level cache, so the seeds are applied one after the other to the same float32 accumulator and
// the key schedule of each is made once per task.
#pragma once

#include "../noise/visit.h"
#include "outer.h"

namespace mobizo::MOBIZO_ISA {

// sum = decay * sum + sum_k coeffs[k] * z(seeds[k]), one fused multiply-add for each seed in their order. The tile's rows lie
// `stride` apart in `sum`.
MOBIZO_INLINE void accumulate(const PerturbArgs& args, OuterTables& tables, const Tile& tile, float decay, float* sum,
                              int64_t stride) {
  if (decay != 1.0f) {
    const F32 factor = broadcast(decay);
    for (int64_t row = 0; row < tile.rows; ++row) {
      float* run = sum + row * stride;
      each_vector(tile.count, [&](int64_t i, auto... n) { store(run + i, factor * load(run + i, n...), n...); });
    }
  }
  if (args.distribution == Distribution::kOuter) return accumulate_outer(args, tables, tile, sum, stride);
  for (int64_t k = 0; k < args.count; ++k) {
    const NoiseStream stream = noise_stream(static_cast<uint64_t>(args.seeds[k]), static_cast<uint64_t>(args.stream));
    const F32 coeff = broadcast(args.coeffs[k]);
    if (args.distribution == Distribution::kGaussian) {
      visit_gaussian(stream, tile.first, tile.count,
                     [&](int64_t i, F32 z, auto... n) { store(sum + i, fma(coeff, z, load(sum + i, n...)), n...); });
    } else {  // the product with a sign is exact: the bits are those of the fused multiply-add
      visit_rademacher(stream, coeff, tile.first, tile.count,
                       [&](int64_t i, F32 term, auto... n) { store(sum + i, term + load(sum + i, n...), n...); });
    }
  }
}

// The sum of directions by itself.
MOBIZO_INLINE void sum_of_directions(const PerturbArgs& args, OuterTables& tables, const Tile& tile, float sum[kTaskElements]) {
  each_vector(tile.rows * tile.count, [&](int64_t i, auto... n) { store(sum + i, zero(), n...); });
  accumulate(args, tables, tile, 1.0f, sum, tile.count);
}

// In double, over interleaved partial sums, enough to hide the latency of an addition: an order that no instruction set
// changes.
MOBIZO_INLINE double sum_of_squares(const float* x, int64_t count) {
  constexpr int64_t kSums = 16;
  double partial[kSums] = {};
  const auto add = [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    for (int64_t lane = 0; lane < n; ++lane) {
      const double value = static_cast<double>(x[i + lane]);
      partial[lane] += value * value;
    }
  };
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) add(i, kSums);
  add(i, count - i);
  double sum = 0.0;
  for (double p : partial) sum += p;
  return sum;
}

// param = step(at, i, decay * param) in every vector of the tile, as each_vector walks over them, step(at, i, decay * param, n)
// in one cut off after n values; and the squared change of the task where it is asked for. `change` is scratch that may hold
// what step reads at i.
template <typename Step>
MOBIZO_INLINE void step_param(const PerturbArgs& args, int64_t task, const Tile& tile, float change[kTaskElements], Step step) {
  const F32 decay = broadcast(args.decay);
  with_type(args.dtype, [&](auto type) {
    auto* param = static_cast<decltype(type)*>(args.param) + tile.first;
    if (args.squared_change == nullptr) {
      each_vector(tile, [&](int64_t at, int64_t i, auto... n) {
        store(param + at, step(at, i, decay * load(param + at, n...), n...), n...);
      });
    } else {
      each_vector(tile, [&](int64_t at, int64_t i, auto... n) {
        const F32 before = load(param + at, n...);
        store(param + at, step(at, i, decay * before, n...), n...);
        store(change + i, load(param + at, n...) - before, n...);
      });
      args.squared_change[task] = sum_of_squares(change, tile.rows * tile.count);
    }
  });
}

}  // namespace mobizo::MOBIZO_ISA
