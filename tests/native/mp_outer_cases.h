// mp_outer against the same sums in double.
#pragma once

#include <cmath>

#include "../../csrc/kernels/run.h"
#include "harness.h"

namespace mobizo {

struct MpOuterCase {
  DType dtype;
  int64_t groups, group_rows, in_features, out_features, gap;
  bool transposed, paired;  // paired: the second half of the groups repeats the seeds of the first, if there are two halves
};

inline void mp_outer_case(const MpOuterCase& c, const Targets& targets, Random& random, Report& report) {
  const int64_t rows = c.groups * c.group_rows, x_stride = c.in_features + 2 * c.gap, stride = c.out_features + c.gap;
  const auto filled = [&](int64_t width, int64_t row_stride) {
    Buffer buffer(c.dtype, rows * row_stride);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < width; ++i) buffer.set(row * row_stride + i, random.uniform());
    return buffer;
  };
  Buffer base = filled(c.out_features, stride), x = filled(c.in_features, x_stride);
  std::vector<int64_t> seeds;
  std::vector<float> coeffs;
  const int64_t units = c.paired && c.groups % 2 == 0 ? c.groups / 2 : c.groups;
  for (int64_t group = 0; group < c.groups; ++group) {
    seeds.push_back(group < units ? random.seed() : seeds[static_cast<size_t>(group - units)]);
    coeffs.push_back(group == c.groups / 2 ? 0.0f : 0.5f * random.uniform());
  }
  MpOuterArgs args{};
  args.x = x.data();
  args.dtype = c.dtype;
  args.x_stride = x_stride;
  args.out_stride = stride;
  const Guarded<int64_t> guarded_seeds(seeds);
  const Guarded<float> guarded_coeffs(coeffs);
  args.seeds = guarded_seeds.data();
  args.coeffs = guarded_coeffs.data();
  args.rows = rows;
  args.in_features = c.in_features;
  args.out_features = c.out_features;
  args.groups = c.groups;
  args.stream = random.seed();
  args.first_out = c.transposed ? c.in_features : 0;
  args.first_in = c.transposed ? 0 : c.out_features;

  for (const Target& target : targets) {
    const auto output = [&](bool piecewise) {
      Buffer out = base;
      args.out = out.data();
      Guarded<uint8_t> signs(static_cast<size_t>(c.groups * sign_bytes(c.out_features + c.in_features)));
      run_mp_outer(target.kernels, args, signs.data(), parallel_for(piecewise));
      return out;
    };
    const Buffer out = output(false), pieces = output(true);
    std::string problem = out.guards_intact() ? "" : "wrote outside of the output";
    for (int64_t row = 0; row < rows; ++row) {
      const auto group = static_cast<size_t>(row / c.group_rows);
      const auto sign = [&](int64_t e) { return reference::noise(Distribution::kRademacher, seeds[group], args.stream, e); };
      double dot = 0.0, magnitude = 0.0;
      for (int64_t k = 0; k < c.in_features; ++k) {
        dot += static_cast<double>(x[row * x_stride + k]) * static_cast<double>(sign(args.first_in + k));
        magnitude += std::fabs(static_cast<double>(x[row * x_stride + k]));
      }
      const auto coeff = static_cast<double>(coeffs[group]);
      for (int64_t n = 0; n < stride && problem.empty(); ++n) {
        const int64_t i = row * stride + n;
        if (n >= c.out_features) {
          if (!out.poisoned(i)) problem = text("wrote between the rows, at (", row, ", ", n, ")");
          continue;
        }
        const auto old = static_cast<double>(base[i]);
        const double value = old + coeff * dot * static_cast<double>(sign(args.first_out + n));
        MpLoraArgs as{};  // whose bound has the roundings of one sum, and three more
        as.in_features = c.in_features;
        as.dtype = c.dtype;
        const double bound = reference::mp_lora_error(as, {value, std::fabs(old) + std::fabs(coeff) * magnitude});
        const double error = std::fabs(static_cast<double>(out[i]) - value);
        if (!(error <= bound)) problem = text("(", row, ", ", n, ") is ", out[i], ", off by ", error, ", bound ", bound);
        if (out.bits(i) != pieces.bits(i)) problem = text("(", row, ", ", n, ") depends on the partition into tasks");
      }
    }
    report.check(text(target.kernels.name, " mp_outer ", name_of(c.dtype), ", groups ", c.groups, " x ", c.group_rows,
                      " rows, ", c.in_features, " to ", c.out_features, ", gap ", c.gap, c.transposed ? ", transposed" : "",
                      c.paired ? ", paired" : ""),
                 problem);
  }
}

inline void mp_outer_cases(const Targets& targets, Report& report) {
  Random random(4);
  int turn = 0;
  for (const int64_t width : {0, 1, 7, 16, 33, 130, 1027})
    for (const DType dtype : kDTypes)
      for (int i = 0; i < 3; ++i, ++turn)
        mp_outer_case({dtype, random.pick({1, 2, 3, 4, 6}), random.pick({1, 2, 3, 5, 7, 11, 13}), width,
                       random.pick({1, 9, 15, 31, 64, 65, 130, 201}), random.pick({0, 1, 5}), turn % 2 == 0, turn % 4 < 2},
                      targets, random, report);
}

}  // namespace mobizo
