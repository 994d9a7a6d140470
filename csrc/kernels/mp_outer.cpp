// mp_outer: out += c_g (x . v_g) u_g^T for the rows of each group g: what a linear gains where each group sees its weight W
// moved by c_g z_g with directions "outer", z_g = u_g v_g^T. Of the noise there are out + in bits for each seed, and W itself
// is neither read nor written.
//
// Row by row: a row is one run of memory, as the prefetchers of the CPU like it.
#include "../noise/rademacher.h"
#include "entry.h"

namespace mobizo::MOBIZO_ISA {
namespace {

// x . v of a row.
template <typename T>
MOBIZO_INLINE float dot_with_signs(const T* x, int64_t count, const uint8_t* bits, int64_t first) {
  constexpr int kSums = 4;  // enough to hide the latency of an addition
  F32 sum[kSums] = {zero(), zero(), zero(), zero()};
  int64_t k = 0;
  for (; k + kSums * kLanes <= count; k += kSums * kLanes)
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) sum[i] = sum[i] + flip_signs_from(load(x + k + i * kLanes), bits, first + k + i * kLanes);
  each_vector(count - k, [&](int64_t i, auto... n) __attribute__((always_inline)) {
    sum[0] = sum[0] + flip_signs_from(load(x + k + i, n...), bits, first + k + i);
  });
  float sums[kSums];
  sum_lanes(sums, sum[0], sum[1], sum[2], sum[3]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <typename T>
MOBIZO_INLINE void outer_row(const MpOuterArgs& args, int64_t row, const uint8_t* bits, float coeff) {
  const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
  T* out = static_cast<T*>(args.out) + row * args.out_stride;
  const F32 slope = broadcast(coeff * dot_with_signs(x, args.in_features, bits, args.first_in));
  each_vector(args.out_features, [&](int64_t i, auto... n) __attribute__((always_inline)) {
    store(out + i, flip_signs_from(slope, bits, args.first_out + i) + load(out + i, n...), n...);
  });
}

}  // namespace

void mp_outer(const MpOuterArgs& args, int64_t first_row, int64_t last_row) {
  const int64_t group_rows = args.rows / args.groups, bytes = sign_bytes(args.out_features + args.in_features);
  with_type(args.dtype, [&](auto type) {
    for (int64_t row = first_row; row < last_row;) {
      const int64_t group = row / group_rows, end = min(last_row, (group + 1) * group_rows);
      const float coeff = args.coeffs[group];
      if (coeff == 0.0f) {  // 0 times infinity would be no plain linear
        row = end;
        continue;
      }
      const uint8_t* bits = args.signs + group % args.units * bytes;
      for (; row < end; ++row) outer_row<decltype(type)>(args, row, bits, coeff);
    }
  });
}

}  // namespace mobizo::MOBIZO_ISA
