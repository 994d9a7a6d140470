// perturb: param = decay * param + sum_i coeffs[i] * z(seeds[i]), any number of seeds in one pass over memory.
//
// A task's elements fit the first-level cache, so the seeds are applied one after the other to the same float32 accumulator
// (the parameter itself where it is float32) and the key schedule of each is made once per task.
#include "../noise/visit.h"
#include "entry.h"

namespace mobizo::MOBIZO_ISA {
namespace {

MOBIZO_INLINE void accumulate(const PerturbArgs& args, int64_t first, int64_t count, float* sum) {
  if (args.decay != 1.0f) {
    const F32 decay = broadcast(args.decay);
    each_vector(count, [&](int64_t i, auto... n) { store(sum + i, decay * load(sum + i, n...), n...); });
  }
  for (int64_t k = 0; k < args.count; ++k) {
    const NoiseStream stream = noise_stream(static_cast<uint64_t>(args.seeds[k]), static_cast<uint64_t>(args.stream));
    const F32 coeff = broadcast(args.coeffs[k]);
    visit_noise(args.distribution, stream, first, count,
                [&](int64_t i, F32 z, auto... n) { store(sum + i, fma(coeff, z, load(sum + i, n...)), n...); });
  }
}

// The sum of squares in double, over eight interleaved partial sums: an order that no instruction set changes.
MOBIZO_INLINE double squared_distance(const float* a, const float* b, int64_t count) {
  double partial[8] = {};
  const auto add = [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    for (int64_t lane = 0; lane < n; ++lane) {
      const double d = static_cast<double>(a[i + lane] - b[i + lane]);
      partial[lane] += d * d;
    }
  };
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) add(i, 8);
  add(i, count - i);
  double sum = 0.0;
  for (double p : partial) sum += p;
  return sum;
}

template <typename T>
MOBIZO_INLINE void widen(const T* from, float* to, int64_t count) {
  each_vector(count, [&](int64_t i, auto... n) { store(to + i, load(from + i, n...), n...); });
}

MOBIZO_INLINE void perturb_task(const PerturbArgs& args, int64_t first, int64_t count, float* param) {
  accumulate(args, first, count, param);
}

template <typename T>
MOBIZO_INLINE void perturb_task(const PerturbArgs& args, int64_t first, int64_t count, T* param) {
  float sum[kTaskElements];
  widen(param, sum, count);
  accumulate(args, first, count, sum);
  each_vector(count, [&](int64_t i, auto... n) { store(param + i, load(sum + i, n...), n...); });
}

}  // namespace

void perturb(const PerturbArgs& args, int64_t begin, int64_t end) {
  with_type(args.dtype, [&](auto type) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kTaskElements, count = min(kTaskElements, args.numel - first);
      auto* param = static_cast<decltype(type)*>(args.param) + first;
      if (args.squared_change == nullptr) {
        perturb_task(args, first, count, param);
      } else {
        float before[kTaskElements], after[kTaskElements];
        widen(param, before, count);
        perturb_task(args, first, count, param);
        widen(param, after, count);
        args.squared_change[task] = squared_distance(after, before, count);
      }
    }
  });
}

}  // namespace mobizo::MOBIZO_ISA
