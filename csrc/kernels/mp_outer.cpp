// mp_outer: out += c_g (x . v_g) u_g^T for the rows of each group g: what a linear gains where each group sees its weight W
// moved by c_g z_g with directions "outer", z_g = u_g v_g^T. Of the noise there are out + in bits for each seed, and W itself
// is neither read nor written.
//
// A few rows at a time: their dot products with v, then one pass over their outputs.
#include "../noise/rademacher.h"
#include "entry.h"

namespace mobizo::MOBIZO_ISA {
namespace {

// `rows` rows of one group, from row `first` on; `bits` are the signs of its seed.
template <int rows, typename T>
MOBIZO_INLINE void outer_rows(const MpOuterArgs& args, int64_t first, const uint8_t* bits, float coeff) {
  constexpr int kQuads = (rows + 3) / 4 * 4;
  const auto* x = static_cast<const T*>(args.x) + first * args.x_stride;
  auto* out = static_cast<T*>(args.out) + first * args.out_stride;
  F32 sum[kQuads];
  for (int row = 0; row < kQuads; ++row) sum[row] = zero();
  each_vector(args.in_features, [&](int64_t k, auto... n) __attribute__((always_inline)) {
    const F32 sign = flip_signs_from(broadcast(1.0f), bits, args.first_in + k);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) sum[row] = fma(load(x + row * args.x_stride + k, n...), sign, sum[row]);
  });
  float dots[kQuads];
#pragma GCC unroll 2
  for (int row = 0; row < kQuads; row += 4) sum_lanes(dots + row, sum[row], sum[row + 1], sum[row + 2], sum[row + 3]);
  F32 slopes[rows];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) slopes[row] = broadcast(coeff * dots[row]);
  each_vector(args.out_features, [&](int64_t i, auto... n) __attribute__((always_inline)) {
    const F32 sign = flip_signs_from(broadcast(1.0f), bits, args.first_out + i);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      T* at = out + row * args.out_stride + i;
      store(at, fma(slopes[row], sign, load(at, n...)), n...);
    }
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
      for (; row < end; row += kDotRows)
        with_constant<kDotRows>(min(kDotRows, end - row),
                                [&](auto rows) { outer_rows<decltype(rows)::n, decltype(type)>(args, row, bits, coeff); });
      row = end;
    }
  });
}

}  // namespace mobizo::MOBIZO_ISA
