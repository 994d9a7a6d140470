// What both forms of mp_lora_expand share: a tile of B transposed, and rows of the output from a panel of that form.
#pragma once

#include "entry.h"

namespace mobizo::MOBIZO_ISA {

// A tile of B, or of the noise for it, transposed: [rank, width] with zeros in the columns beyond the last.
constexpr int64_t kLargestTile = kColumnStep * kMaxRank > kTileFloats ? kColumnStep * kMaxRank : kTileFloats;

struct PanelTile {
  int64_t first_column, columns, width, rank;
  int64_t first() const { return first_column * rank; }  // element of B
  int64_t count() const { return columns * rank; }
  int64_t padded() const { return width * rank; }
};

// panel[j * width + n] = rows[n * rank + j]. `rows` has room for, and gets, 3 values behind the padded tile.
MOBIZO_INLINE void transpose(const PanelTile& t, float* rows, float* panel) {
  for (int64_t i = t.count(); i < t.padded() + 3; ++i) rows[i] = 0.0f;
  for (int64_t n = 0; n < t.width; n += kLanes) {
    for (int64_t j = 0; j < t.rank; j += 4) {
      F32 quad[4];
      load_transposed(rows + n * t.rank + j, t.rank, quad);
      for (int64_t i = 0; i < min(4, t.rank - j); ++i) store(panel + (j + i) * t.width + n, quad[i]);
    }
  }
}

template <typename T>
MOBIZO_INLINE void transposed_b(const PanelTile& t, const T* lora_b, float* rows, float* panel) {
  const T* b = lora_b + t.first();
  each_vector(t.count(), [&](int64_t i, auto... n) { store(rows + i, load(b + i, n...), n...); });
  transpose(t, rows, panel);
}

// sum = u panel for `rows` rows and `vecs` vectors of columns.
template <int rows, int vecs>
MOBIZO_INLINE void panel_product(const float* u, int64_t rank, const float* panel, int64_t width, F32 sum[rows][vecs]) {
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) sum[row][v] = zero();
  add_product<rows, vecs>(u, rank, 1, panel, width, rank, sum);
}

// The rows of base lie far apart: ask for them early, so that they have come by the time the products are done.
template <int rows, int vecs, typename T>
MOBIZO_INLINE void prefetch_base(const MpLoraArgs& args, const T* base) {
  for (int row = 0; row < rows; ++row)
    for (int v = 0; v < vecs; ++v) __builtin_prefetch(base + row * args.base_stride + v * kLanes, 1);
}

// out = base + scaling * sum, the vectors cut to `n` values if given.
template <int rows, int vecs, typename T, typename... N>
MOBIZO_INLINE void add_to_base(const MpLoraArgs& args, const F32 sum[rows][vecs], const T* base, T* out, N... n) {
  const F32 scaling = broadcast(args.scaling);
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) {
      const F32 old = load(base + row * args.base_stride + v * kLanes, n...);
      store(out + row * args.out_stride + v * kLanes, fma(scaling, sum[row][v], old), n...);
    }
}

}  // namespace mobizo::MOBIZO_ISA
