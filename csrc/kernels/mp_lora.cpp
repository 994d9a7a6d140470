// mp_lora: the batched +/- forward of Multi-Perturbed LoRA (MobiZO, arXiv 2409.15520), out = base + s * (x A^T)(B + c_g z_g)^T.
//
// Two sweeps. mp_lora_shrink makes u = x A^T [rows, rank] from dot products over the columns of x. mp_lora_expand takes one
// group and a range of output columns at a time: it draws that part of the group's perturbed B once, transposed into a panel
// that stays in cache, and multiplies all rows of the group by it. Neither B + c_g z_g nor z_g ever exists as a whole.
#include "../noise/visit.h"
#include "entry.h"

namespace mobizo::MOBIZO_ISA {
namespace {

constexpr int64_t kLargestPanel = kColumnStep * kMaxRank;
constexpr int64_t kInnerColumns = 1024;  // columns of x taken at a time, so that a tile of x and of A stays in the cache

// f(integral constant n) for the n in [1, max] that equals `n` at run time.
template <int value>
struct Constant {
  static constexpr int n = value;
};
template <int max, typename F>
MOBIZO_INLINE void with_constant(int64_t n, F f) {
  if constexpr (max > 1) {
    if (n < max) return with_constant<max - 1>(n, f);
  }
  f(Constant<max>{});
}

// --- shrink -----------------------------------------------------------------------------------------------------------------

// u[row * rank + j] (+)= sum over k of x[row, k] * a[j, k] for `rows` rows and `ranks` (4 or 1) values of j.
template <int rows, int ranks>
MOBIZO_INLINE void dot_tile(const float* x, int64_t x_stride, const float* a, int64_t a_stride, int64_t columns, float* u,
                            int64_t rank, bool add) {
  F32 sum[rows][4];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[row][j] = zero();
  const auto step = [&](int64_t k, auto... n) __attribute__((always_inline)) {
    F32 av[ranks];
#pragma GCC unroll 4
    for (int j = 0; j < ranks; ++j) av[j] = load(a + j * a_stride + k, n...);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const F32 xv = load(x + row * x_stride + k, n...);
#pragma GCC unroll 4
      for (int j = 0; j < ranks; ++j) sum[row][j] = fma(xv, av[j], sum[row][j]);
    }
  };
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) step(k);
  if (k < columns) step(k, static_cast<int>(columns - k));
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row) {
    float dots[4];
    sum_lanes(dots, sum[row][0], sum[row][1], sum[row][2], sum[row][3]);
    for (int j = 0; j < ranks; ++j) {
      float& out = u[row * rank + j];
      out = add ? out + dots[j] : dots[j];
    }
  }
}

// Rows of x as float32: in place where they are float32 already, else widened into `scratch`.
MOBIZO_INLINE const float* widened(const float* x, int64_t& stride, int, int64_t, float*) {
  (void)stride;
  return x;
}
template <typename T>
MOBIZO_INLINE const float* widened(const T* x, int64_t& stride, int rows, int64_t columns, float* scratch) {
  for (int row = 0; row < rows; ++row) {
    const T* from = x + row * stride;
    float* to = scratch + row * kInnerColumns;
    each_vector(columns, [&](int64_t k, auto... n) { store(to + k, load(from + k, n...), n...); });
  }
  stride = kInnerColumns;
  return scratch;
}

template <int rows, typename T>
MOBIZO_INLINE void shrink_rows(const MpLoraArgs& args, const T* x, float* u) {
  alignas(64) float scratch[kDotRows * kInnerColumns];
  int64_t k = 0;
  do {  // once at least: no columns make zeros
    const int64_t columns = min(kInnerColumns, args.in_features - k);
    int64_t stride = args.x_stride;
    const float* xk = widened(x + k, stride, rows, columns, scratch);
    const float* ak = args.lora_a + k;
    int64_t j = 0;
    for (; j + 4 <= args.rank; j += 4)
      dot_tile<rows, 4>(xk, stride, ak + j * args.in_features, args.in_features, columns, u + j, args.rank, k > 0);
    for (; j < args.rank; ++j)
      dot_tile<rows, 1>(xk, stride, ak + j * args.in_features, args.in_features, columns, u + j, args.rank, k > 0);
    k += kInnerColumns;
  } while (k < args.in_features);
}

// --- expand -----------------------------------------------------------------------------------------------------------------

// panel[j * width + n] = B[first_column + n, j] + coeff * z, for `columns` columns; zeros from there to width.
template <typename T>
MOBIZO_INLINE void perturbed_panel(const MpLoraArgs& args, const T* lora_b, int64_t group, int64_t first_column,
                                   int64_t columns, int64_t width, float* panel) {
  alignas(64) float rows[kLargestPanel];  // B as it lies in memory, [columns, rank]
  const int64_t first = first_column * args.rank, count = columns * args.rank;
  const T* b = lora_b + first;
  const float coeff = args.coeffs[group];
  if (coeff == 0.0f) {
    each_vector(count, [&](int64_t i, auto... n) { store(rows + i, load(b + i, n...), n...); });
  } else {
    const NoiseStream stream = noise_stream(static_cast<uint64_t>(args.seeds[group]), static_cast<uint64_t>(args.stream));
    const F32 c = broadcast(coeff);
    visit_noise(args.distribution, stream, first, count,
                [&](int64_t i, F32 z, auto... n) { store(rows + i, fma(c, z, load(b + i, n...)), n...); });
  }
  for (int64_t i = count; i < width * args.rank; ++i) rows[i] = 0.0f;
  for (int64_t n = 0; n < width; n += kLanes)
    for (int64_t j = 0; j < args.rank; ++j) store(panel + j * width + n, gather(rows + n * args.rank + j, args.rank));
}

// out = base + scaling * u panel for `rows` rows and `vecs` vectors of columns, the last of them cut to `n` values if given.
template <int rows, int vecs, typename T, typename... N>
MOBIZO_INLINE void expand_tile(const MpLoraArgs& args, const float* u, const float* panel, int64_t width, const T* base, T* out,
                               N... n) {
  F32 sum[rows][vecs];
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) sum[row][v] = zero();
  // The rows of base lie far apart: ask for them now, so that they have come by the time the products are done.
  for (int row = 0; row < rows; ++row)
    for (int v = 0; v < vecs; ++v) __builtin_prefetch(base + row * args.base_stride + v * kLanes, 1);
  for (int64_t j = 0; j < args.rank; ++j) {
    F32 p[vecs];
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) p[v] = load(panel + j * width + v * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const F32 factor = broadcast(u[row * args.rank + j]);
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v) sum[row][v] = fma(factor, p[v], sum[row][v]);
    }
  }
  const F32 scaling = broadcast(args.scaling);
#pragma GCC unroll 8
  for (int row = 0; row < rows; ++row)
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) {
      const F32 old = load(base + row * args.base_stride + v * kLanes, n...);
      store(out + row * args.out_stride + v * kLanes, fma(scaling, sum[row][v], old), n...);
    }
}

template <int rows, typename T>
MOBIZO_INLINE void expand_rows(const MpLoraArgs& args, const float* u, const float* panel, int64_t columns, int64_t width,
                               const T* base, T* out) {
  int64_t n = 0;
  for (; n + kTileVecs * kLanes <= columns; n += kTileVecs * kLanes)
    expand_tile<rows, kTileVecs>(args, u, panel + n, width, base + n, out + n);
  for (; n + kLanes <= columns; n += kLanes) expand_tile<rows, 1>(args, u, panel + n, width, base + n, out + n);
  if (n < columns) expand_tile<rows, 1>(args, u, panel + n, width, base + n, out + n, static_cast<int>(columns - n));
}

}  // namespace

void mp_lora_shrink(const MpLoraArgs& args, int64_t first_row, int64_t last_row) {
  with_type(args.dtype, [&](auto type) {
    const auto* x = static_cast<const decltype(type)*>(args.x);
    for (int64_t row = first_row; row < last_row; row += kDotRows) {
      with_constant<kDotRows>(min(kDotRows, last_row - row), [&](auto rows) {
        shrink_rows<decltype(rows)::n>(args, x + row * args.x_stride, args.shrunk + row * args.rank);
      });
    }
  });
}

void mp_lora_expand(const MpLoraArgs& args, int64_t begin, int64_t end) {
  const int64_t tiles = mp_lora_tiles_per_group(args.out_features, args.tile_columns);
  const int64_t group_rows = args.rows / args.groups;
  alignas(64) float panel[kLargestPanel];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task / tiles, column = task % tiles * args.tile_columns;
    const int64_t columns = min(args.tile_columns, args.out_features - column);
    const int64_t width = (columns + kLanes - 1) / kLanes * kLanes;
    with_type(args.lora_b_dtype, [&](auto type) {
      perturbed_panel(args, static_cast<const decltype(type)*>(args.lora_b), group, column, columns, width, panel);
    });
    with_type(args.dtype, [&](auto type) {
      const auto* base = static_cast<const decltype(type)*>(args.base) + column;
      auto* out = static_cast<decltype(type)*>(args.out) + column;
      const int64_t last = (group + 1) * group_rows;
      for (int64_t row = group * group_rows; row < last; row += kTileRows) {
        with_constant<kTileRows>(min(kTileRows, last - row), [&](auto rows) {
          expand_rows<decltype(rows)::n>(args, args.shrunk + row * args.rank, panel, columns, width,
                                         base + row * args.base_stride, out + row * args.out_stride);
        });
      }
    });
  }
}

}  // namespace mobizo::MOBIZO_ISA
