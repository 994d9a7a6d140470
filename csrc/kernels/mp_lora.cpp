// mp_lora: the batched +/- forward of Multi-Perturbed LoRA (MobiZO, arXiv 2409.15520), out = base + s * (x A^T)(B + c_g z_g)^T.
//
// Two sweeps. mp_lora_shrink makes u = x A^T [rows, rank] from dot products over the columns of x. mp_lora_expand takes a tile
// of output columns and one group after another: it transposes that part of B once, draws and transposes that part of z once
// for all groups of a seed, adds the two into a panel that stays in cache, and multiplies all rows of the group by it. Neither
// B + c_g z_g nor z_g ever exists as a whole.
#include "../noise/visit.h"
#include "mp_lora_panel.h"

namespace mobizo::MOBIZO_ISA {
namespace {

constexpr int64_t kInnerColumns = 1024;  // columns of x taken at a time, so that a tile of x and of A stays in the cache

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

// What expand will read next of base. It lies in tiles of columns far apart, where no prefetcher of the CPU looks; whole rows,
// asked for while their sums are made, come in time. Not more of them than the second-level cache holds.
constexpr int64_t kPrefetchBytes = 512 * 1024;
MOBIZO_INLINE void prefetch_rows(const MpLoraArgs& args, int64_t row, int64_t rows) {
  const int64_t size = args.dtype == DType::kFloat32 ? 4 : 2;
  const char* base = static_cast<const char*>(args.base) + row * args.base_stride * size;
  for (int64_t i = 0; i < rows; ++i, base += args.base_stride * size)
    for (int64_t byte = 0; byte < args.out_features * size; byte += 64) __builtin_prefetch(base + byte, 1, 2);
}

// --- expand -----------------------------------------------------------------------------------------------------------------

constexpr int64_t kSignsPerWord = 16;  // of the 25 bits that load_bits promises

// The noise of a tile, as it is used for every group of one seed: Gaussian values transposed like B, or words of kSignsPerWord
// signs, [ceil(rank / kSignsPerWord), width], bit j % kSignsPerWord for the value of rank index j.
MOBIZO_INLINE void transposed_noise(const PanelTile& t, Distribution distribution, const NoiseStream& stream, float* rows,
                                    float* noise) {
  if (distribution == Distribution::kGaussian) {
    visit_gaussian(stream, t.first(), t.count(), [&](int64_t i, F32 z, auto... n) { store(rows + i, z, n...); });
    transpose(t, rows, noise);
    return;
  }
  auto* bits = reinterpret_cast<uint8_t*>(rows);
  const int64_t offset = rademacher_bits(stream, t.first(), t.padded(), bits);
  for (int64_t j = 0; j < t.rank; j += kSignsPerWord, noise += t.width)
    for (int64_t n = 0; n < t.width; n += kLanes) store(noise + n, as_float(load_bits(bits, offset + n * t.rank + j, t.rank)));
}

// panel = B + coeff * z with one rounding, for B and z transposed.
MOBIZO_INLINE void perturbed_b(const PanelTile& t, Distribution distribution, float coeff, const float* b, const float* noise,
                               float* panel) {
  if (distribution == Distribution::kGaussian) {
    const F32 c = broadcast(coeff);
    for (int64_t i = 0; i < t.padded(); i += kLanes) store(panel + i, fma(c, load(noise + i), load(b + i)));
    return;
  }
  const F32 plus = broadcast(coeff), minus = broadcast(-coeff);
  for (int64_t first = 0; first < t.rank; first += kSignsPerWord, noise += t.width) {
    const int64_t last = min(first + kSignsPerWord, t.rank);
    for (int64_t n = 0; n < t.width; n += kLanes) {
      const U32 word = as_bits(load(noise + n));
      U32 bit = broadcast(1u);
      for (int64_t j = first; j < last; ++j, bit = bit + bit) {
        const int64_t i = j * t.width + n;
        store(panel + i, load(b + i) + select(test(word, bit), minus, plus));
      }
    }
  }
}

// out = base + scaling * u panel for `rows` rows and `vecs` vectors of columns, the last of them cut to `n` values if given.
template <int rows, int vecs, typename T, typename... N>
MOBIZO_INLINE void expand_tile(const MpLoraArgs& args, const float* u, const float* panel, int64_t width, const T* base, T* out,
                               N... n) {
  F32 sum[rows][vecs];
  prefetch_base<rows, vecs>(args, base);
  panel_product<rows, vecs>(u, args.rank, panel, width, sum);
  add_to_base<rows, vecs>(args, sum, base, out, n...);
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

// --- few rows ---------------------------------------------------------------------------------------------------------------

constexpr int kFewRows = 2;  // to which transposing B costs more than it saves: those of a text that grows token by token

MOBIZO_INLINE bool perturbed(const MpLoraArgs& args) {
  for (int64_t group = 0; group < args.groups; ++group)
    if (args.coeffs[group] != 0.0f) return true;
  return false;
}

// kLanes rows of B, of which there are `count`, with 3 values behind them that may be read.
MOBIZO_INLINE const float* block_of_b(const float* b, int64_t count, int64_t rank, float* scratch) {
  if (count == kLanes && rank % 4 == 0) return b;
  std::memcpy(scratch, b, sizeof(float) * static_cast<size_t>(count * rank));
  for (int64_t i = count * rank; i < kLanes * rank + 3; ++i) scratch[i] = 0.0f;
  return scratch;
}
template <typename B>
MOBIZO_INLINE const float* block_of_b(const B* b, int64_t count, int64_t rank, float* scratch) {
  each_vector(count * rank, [&](int64_t i, auto... n) { store(scratch + i, load(b + i, n...), n...); });
  for (int64_t i = count * rank; i < kLanes * rank + 3; ++i) scratch[i] = 0.0f;
  return scratch;
}

// Columns of `rows` rows from `row` on, without a panel; `b` is the part of B for them. The same sums in the same order.
template <int rows, typename T, typename B>
MOBIZO_INLINE void expand_few(const MpLoraArgs& args, int64_t row, int64_t column, int64_t columns, const B* b,
                              float* scratch) {
  const float* u = args.shrunk + row * args.rank;
  const auto* base = static_cast<const T*>(args.base) + row * args.base_stride + column;
  auto* out = static_cast<T*>(args.out) + row * args.out_stride + column;
  each_vector(columns, [&](int64_t n, auto... left) __attribute__((always_inline)) {
    const float* block = block_of_b(b + n * args.rank, min(kLanes, columns - n), args.rank, scratch);
    F32 sum[rows][1];
    for (int i = 0; i < rows; ++i) sum[i][0] = zero();
    for (int64_t j = 0; j < args.rank; j += 4) {
      F32 quad[4];
      load_transposed(block + j, args.rank, quad);
      for (int64_t k = 0; k < min(4, args.rank - j); ++k)
        for (int i = 0; i < rows; ++i) sum[i][0] = fma(broadcast(u[i * args.rank + j + k]), quad[k], sum[i][0]);
    }
    add_to_base<rows, 1>(args, sum, base + n, out + n, left...);
  });
}

}  // namespace

void mp_lora_shrink(const MpLoraArgs& args, int64_t first_row, int64_t last_row) {
  const bool prefetch = (last_row - first_row) * args.out_features * 4 <= kPrefetchBytes;
  with_type(args.dtype, [&](auto type) {
    const auto* x = static_cast<const decltype(type)*>(args.x);
    for (int64_t row = first_row; row < last_row; row += kDotRows) {
      if (prefetch) prefetch_rows(args, row, min(kDotRows, last_row - row));
      with_constant<kDotRows>(min(kDotRows, last_row - row), [&](auto rows) {
        shrink_rows<decltype(rows)::n>(args, x + row * args.x_stride, args.shrunk + row * args.rank);
      });
    }
  });
}

void mp_lora_expand(const MpLoraArgs& args, int64_t begin, int64_t end) {
  const int64_t units = args.units, group_rows = args.rows / args.groups;
  const bool few = group_rows > 0 && args.rows <= kFewRows && !perturbed(args);
  constexpr int64_t kScratch = kLargestTile + rademacher_bytes(0) / 4 + 4;
  alignas(64) float b[kLargestTile], noise[kLargestTile], scratch[kScratch];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t unit = task % units, column = task / units * args.tile_columns;
    const int64_t columns = min(args.tile_columns, args.out_features - column);
    const PanelTile tile = {column, columns, whole_vectors(columns), args.rank};
    if (few) {
      with_type(args.lora_b_dtype, [&](auto b_type) {
        const auto* lora_b = static_cast<const decltype(b_type)*>(args.lora_b) + tile.first();
        with_type(args.dtype, [&](auto type) {
          for (int64_t group = unit; group < args.groups; group += units)
            with_constant<kFewRows>(group_rows, [&](auto rows) {
              expand_few<decltype(rows)::n, decltype(type)>(args, group * group_rows, column, columns, lora_b, scratch);
            });
        });
      });
      continue;
    }
    if (task == begin || unit == 0) {
      with_type(args.lora_b_dtype,
                [&](auto type) { transposed_b(tile, static_cast<const decltype(type)*>(args.lora_b), scratch, b); });
    }
    bool drawn = false;
    for (int64_t group = unit; group < args.groups; group += units) {
      const float coeff = args.coeffs[group];
      const float* panel = b;
      if (coeff != 0.0f) {
        if (!drawn) {
          const auto seed = static_cast<uint64_t>(args.seeds[group]), stream = static_cast<uint64_t>(args.stream);
          transposed_noise(tile, args.distribution, noise_stream(seed, stream), scratch, noise);
          drawn = true;
        }
        perturbed_b(tile, args.distribution, coeff, b, noise, scratch);
        panel = scratch;
      }
      with_type(args.dtype, [&](auto type) {
        const auto* base = static_cast<const decltype(type)*>(args.base) + column;
        auto* out = static_cast<decltype(type)*>(args.out) + column;
        const int64_t last = (group + 1) * group_rows;
        for (int64_t row = group * group_rows; row < last; row += kTileRows) {
          with_constant<kTileRows>(min(kTileRows, last - row), [&](auto rows) {
            expand_rows<decltype(rows)::n>(args, args.shrunk + row * args.rank, panel, columns, tile.width,
                                           base + row * args.base_stride, out + row * args.out_stride);
          });
        }
      });
    }
  }
}

}  // namespace mobizo::MOBIZO_ISA
