// mp_lora against the same sums in double.
#pragma once

#include <cmath>

#include "../../csrc/kernels/run.h"
#include "harness.h"

namespace mobizo {

struct MpLoraCase {
  DType dtype, lora_b_dtype;
  Distribution distribution;
  int64_t groups, group_rows, in_features, out_features, rank, gap;
  bool in_place, paired;  // paired: the second half of the groups repeats the seeds of the first, if there are two halves
};

inline void mp_lora_case(const MpLoraCase& c, const Targets& targets, Random& random, Report& report) {
  const int64_t rows = c.groups * c.group_rows;
  const auto filled = [&](DType dtype, int64_t height, int64_t width, int64_t stride) {
    Buffer buffer(dtype, height * stride);
    for (int64_t row = 0; row < height; ++row)
      for (int64_t column = 0; column < width; ++column) buffer.set(row * stride + column, random.uniform());
    return buffer;
  };
  const int64_t base_stride = c.out_features + c.gap, x_stride = c.in_features + 2 * c.gap;
  const int64_t out_stride = c.in_place ? base_stride : c.out_features + 3 * c.gap;
  Buffer base = filled(c.dtype, rows, c.out_features, base_stride), x = filled(c.dtype, rows, c.in_features, x_stride);
  Buffer lora_a = filled(DType::kFloat32, c.rank, c.in_features, c.in_features);
  Buffer lora_b = filled(c.lora_b_dtype, c.out_features, c.rank, c.rank);
  std::vector<int64_t> seeds;
  std::vector<float> coeffs;
  const int64_t units = c.paired && c.groups % 2 == 0 ? c.groups / 2 : c.groups;
  for (int64_t group = 0; group < c.groups; ++group) {
    seeds.push_back(group < units ? random.seed() : seeds[static_cast<size_t>(group - units)]);
    coeffs.push_back(group == c.groups / 2 ? 0.0f : 0.5f * random.uniform());
  }
  report.check(text("mp_lora units of ", c.groups, " groups"),
               mp_lora_units(seeds.data(), c.groups) == units ? "" : text("expected ", units));
  MpLoraArgs args{};
  args.base = base.data();
  args.x = x.data();
  args.dtype = c.dtype;
  args.base_stride = base_stride;
  args.x_stride = x_stride;
  args.out_stride = out_stride;
  args.lora_a = static_cast<const float*>(lora_a.data());
  args.lora_b = lora_b.data();
  args.lora_b_dtype = c.lora_b_dtype;
  const Guarded<int64_t> guarded_seeds(seeds);
  const Guarded<float> guarded_coeffs(coeffs);
  args.seeds = guarded_seeds.data();
  args.coeffs = guarded_coeffs.data();
  args.rows = rows;
  args.in_features = c.in_features;
  args.out_features = c.out_features;
  args.rank = c.rank;
  args.groups = c.groups;
  args.scaling = 0.8f;
  args.stream = random.seed();
  args.distribution = c.distribution;
  const std::vector<reference::Bounded> expected = reference::mp_lora(
      args, [&](int64_t row, int64_t n) { return base[row * base_stride + n]; },
      [&](int64_t row, int64_t k) { return x[row * x_stride + k]; },
      [&](int64_t n, int64_t j) { return lora_b[n * c.rank + j]; });

  for (const Target& target : targets) {
    const auto output = [&](int64_t groups_apart, int64_t tile_columns, bool piecewise) {
      Buffer out = c.in_place ? base : Buffer(c.dtype, rows * out_stride), shrunk(DType::kFloat32, rows * c.rank);
      if (c.in_place) args.base = out.data();
      args.out = out.data();
      if (c.distribution == Distribution::kOuter) {
        Guarded<float> scratch(static_cast<size_t>(mp_lora_scratch(args)));
        args.scratch = scratch.data();
        const int64_t threads = piecewise ? rows : 1;  // the first by tiles of columns, the other by rows
        run_mp_lora(target.kernels, args, threads, parallel_for(piecewise));
        return out;
      }
      args.units = groups_apart;
      args.tile_columns = tile_columns;
      args.shrunk = static_cast<float*>(shrunk.data());
      run(target.kernels.mp_lora_shrink, args, 0, rows, piecewise);
      run(target.kernels.mp_lora_expand, args, 0, args.units * mp_lora_tiles(c.out_features, tile_columns), piecewise);
      return out;
    };
    const Buffer out = output(units, mp_lora_tile_columns(c.out_features, c.rank, c.out_features), false);
    const Buffer pieces = output(c.groups, kColumnStep, true);
    std::string problem = out.guards_intact() ? "" : "wrote outside of the output";
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t n = 0; n < out_stride && problem.empty(); ++n) {
        const int64_t i = row * out_stride + n;
        if (n >= c.out_features) {
          if (!out.poisoned(i)) problem = text("wrote between the rows, at (", row, ", ", n, ")");
          continue;
        }
        const reference::Bounded& e = expected[static_cast<size_t>(row * c.out_features + n)];
        const double error = std::fabs(out[i] - e.value), bound = reference::mp_lora_error(args, e);
        if (!(error <= bound)) problem = text("(", row, ", ", n, ") is ", out[i], ", off by ", error, ", bound ", bound);
        if (out.bits(i) != pieces.bits(i))
          problem = text("(", row, ", ", n, ") depends on the partition into units, tiles and tasks");
      }
    }
    report.check(
        text(target.kernels.name, " mp_lora ", name_of(c.distribution), " ", name_of(c.dtype), ", lora_b ",
             name_of(c.lora_b_dtype), ", groups ", c.groups, " x ", c.group_rows, " rows, ", c.in_features, " to ",
             c.out_features, ", rank ", c.rank, ", gap ", c.gap, c.in_place ? ", in place" : "", c.paired ? ", paired" : ""),
        problem);
  }
}

inline void mp_lora_cases(const Targets& targets, Report& report) {
  Random random(3);
  int turn = 0;
  for (const int64_t rank : {1, 2, 3, 4, 5, 7, 8, 13, 16, 31, 32, 64, 100, 128, 255, 256})
    for (const DType dtype : kDTypes)
      for (const DType lora_b_dtype : kDTypes) {
        const Distribution distribution = kDistributions[turn % 3];
        mp_lora_case({dtype, lora_b_dtype, distribution, random.pick({1, 2, 3, 4, 6}), random.pick({1, 2, 3, 5, 7, 11, 13}),
                      random.pick({1, 7, 33, 64, 131}), random.pick({1, 9, 15, 31, 64, 65, 130, 201}), rank,
                      random.pick({0, 1, 5}), turn % 5 < 2, turn % 4 < 2},
                     targets, random, report);
        ++turn;
      }
  for (const DType dtype : kDTypes) {
    const auto shape = [&](int64_t groups, int64_t group_rows, int64_t in_features, int64_t out_features, int64_t rank) {
      mp_lora_case({dtype, DType::kFloat32, Distribution::kGaussian, groups, group_rows, in_features, out_features, rank, 0,
                    false, false},
                   targets, random, report);
    };
    shape(256, 1, 5, 3, 2);     // the most groups
    shape(2, 3, 0, 20, 4);      // no columns of x: base comes back
    shape(2, 7, 1024, 33, 4);   // one whole stretch of columns of x,
    shape(2, 7, 2051, 33, 6);   // two and a rest
    shape(1, 5, 12, 1100, 16);  // several tiles of columns of the output
  }
}

}  // namespace mobizo
