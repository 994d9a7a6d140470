// Sums of directions "outer", z = u v^T with u and v of signs, over a tile of a matrix.
//
// No noise is made per element: the sum is the product of a table of coefficients, each with the sign of a row, and one of the
// columns' signs, as in a matrix product over the seeds. Each element takes one fused multiply-add for each seed in their
// order; its product with a sign is exact.
#pragma once

#include "../noise/rademacher.h"
#include "tile.h"

namespace mobizo::MOBIZO_ISA {

struct OuterTables {
  alignas(64) float columns[kColumnSigns];               // v of each seed, 1 or -1
  alignas(64) float rows[kSeedsTogether * kTileHeight];  // coeffs[k] * u of each seed
  int64_t column = -1, first_seed = -1;                  // whose signs `columns` holds
};

// The next tile's rows lie where no prefetcher of the CPU looks for them.
MOBIZO_INLINE void prefetch_next(const PerturbArgs& args, const Tile& tile) {
  const int64_t size = args.dtype == DType::kFloat32 ? 4 : 2;
  const char* next = static_cast<const char*>(args.param) + (tile.first + tile.count) * size;
  for (int64_t row = 0; row < tile.rows; ++row, next += tile.stride * size)
    for (int64_t byte = 0; byte < tile.count * size; byte += 64) __builtin_prefetch(next + byte, 1);
}

// sum += the product of `rows` rows and `vecs` vectors of columns, the last of them cut off after `n` values if given.
template <int rows, int vecs, typename... N>
MOBIZO_INLINE void outer_tile(const float* row_table, const float* column_table, int64_t width, int64_t seeds, float* sum,
                              int64_t stride, N... n) {
  F32 acc[rows][vecs];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) acc[row][v] = load(sum + row * stride + v * kLanes, n...);
  add_product<rows, vecs>(row_table, 1, kTileHeight, column_table, width, seeds, acc);
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) store(sum + row * stride + v * kLanes, acc[row][v], n...);
}

template <int rows>
MOBIZO_INLINE void outer_rows(const float* row_table, const float* column_table, int64_t seeds, int64_t count, float* sum,
                              int64_t stride) {
  const int64_t width = whole_vectors(count);
  int64_t i = 0;
  for (; i + kTileVecs * kLanes <= count; i += kTileVecs * kLanes)
    outer_tile<rows, kTileVecs>(row_table, column_table + i, width, seeds, sum + i, stride);
  for (; i + kLanes <= count; i += kLanes) outer_tile<rows, 1>(row_table, column_table + i, width, seeds, sum + i, stride);
  if (i < count) outer_tile<rows, 1>(row_table, column_table + i, width, seeds, sum + i, stride, static_cast<int>(count - i));
}

// sum += sum_k coeffs[k] * z(seeds[k]) of a tile whose rows lie `stride` apart in `sum`.
MOBIZO_INLINE void accumulate_outer(const PerturbArgs& args, OuterTables& tables, const Tile& tile, float* sum,
                                    int64_t stride) {
  const int64_t all_rows = args.numel / args.columns, bytes = sign_bytes(all_rows + args.columns);
  const int64_t width = whole_vectors(tile.count);
  if (tile.rows > 1 && tile.count < tile.stride) prefetch_next(args, tile);
  for (int64_t first = 0; first < args.count; first += kSeedsTogether) {
    const int64_t seeds = min(kSeedsTogether, args.count - first);
    const uint8_t* bits = args.signs + first * bytes;
    if (tables.column != tile.column || tables.first_seed != first) {
      for (int64_t k = 0; k < seeds; ++k)
        store_signs(tables.columns + k * width, broadcast(1.0f), bits + k * bytes, all_rows + tile.column, tile.count);
      tables.column = tile.column;
      tables.first_seed = first;
    }
    for (int64_t k = 0; k < seeds; ++k)
      store_signs(tables.rows + k * kTileHeight, broadcast(args.coeffs[first + k]), bits + k * bytes, tile.row, tile.rows);
    for (int64_t row = 0; row < tile.rows; row += kTileRows)
      with_constant<kTileRows>(min(kTileRows, tile.rows - row), [&](auto rows) {
        outer_rows<decltype(rows)::n>(tables.rows + row, tables.columns, seeds, tile.count, sum + row * stride, stride);
      });
  }
}

}  // namespace mobizo::MOBIZO_ISA
