// mp_lora with directions "outer", z_g = u_g v_g^T: out = base + s * (h B^T + c_g (h . v_g) u_g^T) with h = x A^T.
//
// The product with B is the same for every group, so one panel of B, transposed once, serves all rows. What a group adds is one
// dot product of `rank` terms for each row and one signed addition for each output; of the noise there are out + rank bits.
#include "../noise/rademacher.h"
#include "mp_lora_panel.h"

namespace mobizo::MOBIZO_ISA {
namespace {

// The signs of the group that a row belongs to.
MOBIZO_INLINE const uint8_t* signs_of(const MpLoraArgs& args, int64_t group) {
  return args.signs + group % args.units * sign_bytes(args.out_features + args.rank);
}

// Columns from `column` on of rows first .. first + rows - 1; the vectors cut to `n` values if given.
template <int rows, int vecs, typename T, typename... N>
MOBIZO_INLINE void outer_tile(const MpLoraArgs& args, int64_t first, int64_t column, const float* panel, int64_t width,
                              N... n) {
  const auto* base = static_cast<const T*>(args.base) + first * args.base_stride + column;
  auto* out = static_cast<T*>(args.out) + first * args.out_stride + column;
  const int64_t group_rows = args.rows / args.groups, group = first / group_rows;
  F32 sum[rows][vecs];
  prefetch_base<rows, vecs>(args, base);
  panel_product<rows, vecs>(args.shrunk + first * args.rank, args.rank, panel, width, sum);
  if ((first + rows - 1) / group_rows == group) {
    const uint8_t* bits = signs_of(args, group) + column / 8;
    F32 signs[vecs];
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) signs[v] = flip_signs(broadcast(1.0f), bits + v * (kLanes / 8));
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const F32 slope = broadcast(args.slopes[first + row]);
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v) sum[row][v] = fma(slope, signs[v], sum[row][v]);
    }
  } else {  // the same bits: a product with a sign is exact
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const uint8_t* bits = signs_of(args, (first + row) / group_rows) + column / 8;
      const F32 slope = broadcast(args.slopes[first + row]);
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v) sum[row][v] = sum[row][v] + flip_signs(slope, bits + v * (kLanes / 8));
    }
  }
  add_to_base<rows, vecs>(args, sum, base, out, n...);
}

template <int rows, typename T>
MOBIZO_INLINE void outer_rows(const MpLoraArgs& args, int64_t row, const PanelTile& t, const float* panel) {
  int64_t n = 0;
  for (; n + kTileVecs * kLanes <= t.columns; n += kTileVecs * kLanes)
    outer_tile<rows, kTileVecs, T>(args, row, t.first_column + n, panel + n, t.width);
  for (; n + kLanes <= t.columns; n += kLanes) outer_tile<rows, 1, T>(args, row, t.first_column + n, panel + n, t.width);
  if (n < t.columns) outer_tile<rows, 1, T>(args, row, t.first_column + n, panel + n, t.width, static_cast<int>(t.columns - n));
}

MOBIZO_INLINE PanelTile panel_tile(const MpLoraArgs& args, int64_t tile) {
  const int64_t column = tile * args.tile_columns, columns = min(args.tile_columns, args.out_features - column);
  return {column, columns, whole_vectors(columns), args.rank};
}

}  // namespace

void mp_lora_pack(const MpLoraArgs& args, int64_t begin, int64_t end) {
  alignas(64) float rows[kLargestTile + 4];
  for (int64_t tile = begin; tile < end; ++tile)
    with_type(args.lora_b_dtype, [&](auto type) {
      const auto* b = static_cast<const decltype(type)*>(args.lora_b);
      transposed_b(panel_tile(args, tile), b, rows, args.panel + tile * args.tile_columns * args.rank);
    });
}

void mp_lora_slopes(const MpLoraArgs& args, int64_t first_row, int64_t last_row) {
  const int64_t group_rows = args.rows / args.groups;
  for (int64_t row = first_row; row < last_row; row += 4) {
    F32 sum[4] = {zero(), zero(), zero(), zero()};
    const int64_t rows = min(4, last_row - row);
    for (int64_t i = 0; i < rows; ++i) {
      const float* h = args.shrunk + (row + i) * args.rank;
      const uint8_t* bits = signs_of(args, (row + i) / group_rows);
      each_vector(args.rank, [&](int64_t j, auto... n) {
        sum[i] = sum[i] + flip_signs_from(load(h + j, n...), bits, args.out_features + j);
      });
    }
    float dots[4];
    sum_lanes(dots, sum[0], sum[1], sum[2], sum[3]);
    for (int64_t i = 0; i < rows; ++i) {
      const float coeff = args.coeffs[(row + i) / group_rows];
      args.slopes[row + i] = coeff == 0.0f ? 0.0f : coeff * dots[i];  // 0 times infinity would be no plain LoRA
    }
  }
}

void mp_lora_outer(const MpLoraArgs& args, int64_t first_row, int64_t last_row, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const PanelTile t = panel_tile(args, tile);
    const float* panel = args.panel + tile * args.tile_columns * args.rank;
    with_type(args.dtype, [&](auto type) {
      for (int64_t row = first_row; row < last_row; row += kTileRows)
        with_constant<kTileRows>(min(kTileRows, last_row - row),
                                 [&](auto rows) { outer_rows<decltype(rows)::n, decltype(type)>(args, row, t, panel); });
    });
  }
}

}  // namespace mobizo::MOBIZO_ISA
