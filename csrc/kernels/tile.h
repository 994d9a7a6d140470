// What one task of a kernel over a parameter covers, and the walk over its vectors.
#pragma once

#include "entry.h"

namespace mobizo::MOBIZO_ISA {

// `rows` runs of `count` elements each, `stride` elements apart in the tensor from element `first` on, and one behind the other
// in scratch of kTaskElements. A task of a flat tensor is one run; `row` and `column` are where a tile of a matrix begins.
struct Tile {
  int64_t first, rows, count, stride;
  int64_t row, column;
};

template <typename Args>
MOBIZO_INLINE Tile tile_of(const Args& args, int64_t task) {
  if (args.distribution != Distribution::kOuter) {
    const int64_t first = task * kTaskElements, count = min(kTaskElements, args.numel - first);
    return {first, 1, count, count, 0, 0};
  }
  const int64_t columns = args.columns, rows = args.numel / columns;
  const MatrixTiles tiles = matrix_tiles(rows, columns, args.count);
  const int64_t row = task / tiles.across * tiles.height, column = task % tiles.across * tiles.width;
  return {row * columns + column, min(tiles.height, rows - row), min(tiles.width, columns - column), columns, row, column};
}

// f(at, i) for each whole vector, f(at, i, n) for one cut off after n values: `at` counts from the tile's first element in the
// tensor, `i` in scratch.
template <typename F>
MOBIZO_INLINE void each_vector(const Tile& tile, F f) {
  for (int64_t row = 0; row < tile.rows; ++row)
    each_vector(tile.count, [&](int64_t i, auto... n) { f(row * tile.stride + i, row * tile.count + i, n...); });
}

}  // namespace mobizo::MOBIZO_ISA
