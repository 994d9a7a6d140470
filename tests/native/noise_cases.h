// noise against the contract, value by value.
#pragma once

#include "harness.h"

namespace mobizo {

// Elements first_task * kTaskElements .. numel - 1, which need not be preceded by the others in memory.
inline Buffer make_noise(const Kernels& kernels, NoiseArgs args, int64_t first_task, bool piecewise = false) {
  const int64_t first = first_task * kTaskElements, width = args.dtype == DType::kFloat32 ? 4 : 2;
  Buffer out(args.dtype, args.numel - first);
  args.out = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(out.data()) - static_cast<uintptr_t>(first * width));
  run(kernels.noise, args, first_task, flat_tasks(args.numel), piecewise);
  return out;
}

inline void noise_case(int64_t first_task, int64_t count, DType dtype, Distribution distribution, Targets& targets,
                       Random& random, Report& report) {
  const int64_t first = first_task * kTaskElements, seed = random.seed(), stream = random.seed();
  std::vector<uint32_t> expected;
  for (int64_t e = first; e < first + count; ++e)
    expected.push_back(reference::narrow(dtype, reference::noise(distribution, seed, stream, e)));
  const NoiseArgs args{nullptr, dtype, first + count, seed, stream, distribution};
  for (Target& target : targets) {
    const std::string name = text(target.kernels.name, " noise ", name_of(distribution), " ", name_of(dtype), ", ", count,
                                  " elements from ", first, ", seed ", seed, ", stream ", stream);
    const Buffer out = make_noise(target.kernels, args, first_task);
    report.check(name, difference(out, expected));
    report.check(name + ", task by task", difference(make_noise(target.kernels, args, first_task, true), expected));
    target.digest.add(out);
  }
}

inline void outer_noise_case(const Shape& shape, DType dtype, Targets& targets, Random& random, Report& report) {
  const int64_t seed = random.seed(), stream = random.seed();
  std::vector<uint32_t> expected;
  for (int64_t e = 0; e < shape.numel(); ++e)
    expected.push_back(
        reference::narrow(dtype, reference::direction(Distribution::kOuter, seed, stream, shape.rows, shape.columns, e)));
  NoiseArgs args{nullptr, dtype, shape.numel(), seed, stream, Distribution::kOuter, shape.columns};
  for (Target& target : targets) {
    const auto signs = make_signs(target.kernels, args, &seed, 1);
    Buffer whole(dtype, shape.numel()), pieces = whole;
    const std::string name = text(target.kernels.name, " noise outer ", name_of(dtype), ", ", shape.rows, " x ", shape.columns,
                                  ", seed ", seed, ", stream ", stream);
    args.out = whole.data();
    run(target.kernels.noise, args, 0, tasks_of(args), false);
    report.check(name, difference(whole, expected));
    args.out = pieces.data();
    run(target.kernels.noise, args, 0, tasks_of(args), true);
    report.check(name + ", task by task", difference(pieces, expected));
    target.digest.add(whole);
  }
}

inline void noise_cases(Targets& targets, Report& report) {
  Random random(1);
  // From the start, and across the elements where the low word of the counter wraps: 4 * 2^32 and 128 * 2^32.
  for (const int64_t first_task : {int64_t{0}, (int64_t{1} << 34) / kTaskElements - 1, (int64_t{1} << 39) / kTaskElements - 1})
    for (const int64_t count : {1, 7, 8, 15, 31, 33, 127, 129, 511, 1025, 2047, 2048, 2049, 5003})
      for (const DType dtype : kDTypes)
        for (const Distribution distribution : kFlatDistributions)
          noise_case(first_task, count, dtype, distribution, targets, random, report);
  for (const Shape shape : {Shape{1, 1}, {7, 1}, {1, 9}, {5, 3}, {1030, 2}, {3, 2050}, {129, 130}, {2, 5000}})
    for (const DType dtype : kDTypes) outer_noise_case(shape, dtype, targets, random, report);
  // Enough values to see any one rounding of the polynomials go another way.
  noise_case(0, 1 << 20, DType::kFloat32, Distribution::kGaussian, targets, random, report);
}

}  // namespace mobizo
