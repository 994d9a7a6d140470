// The kernels as the bindings see them: raw pointers, sizes and strides; no torch, no ExecuTorch, no exceptions, no threads.
//
// Each kernel cuts its work into tasks of a fixed size that do not depend on the number of threads. A binding asks how many
// there are and runs run(args, begin, end) over them with whatever parallel_for it has; every partition gives the same bits.
// Pointers are valid, sizes consistent: that is checked before, in the bindings.
#pragma once

#include <cstdint>

#include "../noise/distribution.h"

namespace mobizo {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };

constexpr int64_t kMaxRank = 256;

// Bits of `count` streams of signs, one for each seed: element e of stream k is bit e of the bytes from signs + k * sign_bytes
// on. Directions "outer" of a matrix are made from them: u is the first `rows` signs of a stream, v the next `columns`.
struct SignsArgs {
  const int64_t* seeds;
  int64_t count;
  int64_t stream;
  int64_t numel;
  uint8_t* signs;
};
constexpr int64_t kSignBlock = 1024;  // elements that every instruction set makes at once, or a multiple of them
// Whole blocks, and room to read eight bytes from any element on.
constexpr int64_t sign_bytes(int64_t numel) { return (numel + kSignBlock - 1) / kSignBlock * (kSignBlock / 8) + 8; }

// out[e] = z(seed, stream, e), rounded to dtype, for numel elements.
struct NoiseArgs {
  static constexpr int64_t count = 1;  // of seeds
  void* out;
  DType dtype;
  int64_t numel;
  int64_t seed, stream;
  Distribution distribution;
  int64_t columns = 0;             // of kOuter: elements in a row, the product of all sizes but the first
  const uint8_t* signs = nullptr;  // of kOuter, from the kernel `signs`
};

// param = decay * param + sum_i coeffs[i] * z(seeds[i], stream), rounded once.
struct PerturbArgs {
  void* param;
  DType dtype;
  int64_t numel;
  const int64_t* seeds;
  const float* coeffs;
  int64_t count;
  int64_t stream;
  float decay;
  Distribution distribution;
  double* squared_change;          // null, or one element per task: the sum of squares of (new - old) as stored
  int64_t columns = 0;             // of kOuter: elements in a row, the product of all sizes but the first
  const uint8_t* signs = nullptr;  // of kOuter, from the kernel `signs`
};

// The optimizers below step along g = sum_i coeffs[i] * z(seeds[i], stream), which never exists beyond a tile, and keep state
// of float32 in the order of the parameter's elements.

// momentum = beta * momentum + g, param = decay * param + momentum: the coefficients carry minus the learning rate.
struct ZoMomentumArgs : PerturbArgs {
  float* momentum;
  float beta;
};

// exp_avg = beta1 * exp_avg + (1 - beta1) * g, exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g^2,
// param = decay * param - lr * exp_avg / (sqrt(exp_avg_sq) + eps): lr carries the correction of both averages' bias.
struct ZoAdamArgs : PerturbArgs {
  float *exp_avg, *exp_avg_sq;
  float lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps;
};

// param = decay * param - lr * sign(g).
struct ZoSignArgs : PerturbArgs {
  float lr;
};

// out = base + scaling * (x A^T) (B + coeffs[g] z(seeds[g], stream))^T for the rows of each of `groups` equal row blocks.
// x, base and out share dtype and have unit column stride; lora_a [rank, in] is float32 and contiguous; lora_b [out, rank]
// contiguous. base may be out. `scratch` has mp_lora_scratch floats, in which run_mp_lora places what stands behind it.
struct MpLoraArgs {
  const void* base;
  const void* x;
  void* out;
  DType dtype;
  int64_t base_stride, x_stride, out_stride;  // elements between rows
  const float* lora_a;
  const void* lora_b;
  DType lora_b_dtype;
  const int64_t* seeds;
  const float* coeffs;
  int64_t rows, in_features, out_features, rank, groups;
  float scaling;
  int64_t stream;
  Distribution distribution;
  int64_t units;         // from mp_lora_units
  int64_t tile_columns;  // from mp_lora_tile_columns
  float* scratch;
  float* shrunk;         // x A^T [rows, rank], filled by mp_lora_shrink
  float* panel;          // of kOuter: B^T in tiles of columns, each [rank, width], filled by mp_lora_pack
  float* slopes;         // of kOuter: coeffs[g] * (x A^T . v_g) of each row, filled by mp_lora_slopes
  const uint8_t* signs;  // of kOuter: u and v of each unit, from the kernel `signs`
};

// out += coeffs[g] (x . v_g) u_g^T for the rows of each of `groups` equal row blocks, u_g and v_g the signs that directions
// "outer" of a weight have under seeds[g]. x and out share dtype, have unit column stride and no memory in common.
struct MpOuterArgs {
  const void* x;
  void* out;
  DType dtype;
  int64_t x_stride, out_stride;  // elements between rows
  const int64_t* seeds;
  const float* coeffs;
  int64_t rows, in_features, out_features, groups;
  int64_t stream;
  int64_t first_out, first_in;  // sign of the first output and of the first input: 0 and out_features for a weight [out, in]
  int64_t units;                // from mp_lora_units
  const uint8_t* signs;         // out_features + in_features of each unit, from the kernel `signs`
};

// Sets distribution and columns of a tensor whose numel is set: `rows` is the first of its sizes. One of fewer than two
// dimensions has no rows and columns; its directions "outer" are plain signs.
template <typename Args>
constexpr void set_distribution(Args& args, Distribution distribution, int64_t dimensions, int64_t rows) {
  const bool matrix = dimensions >= 2;
  args.distribution = distribution == Distribution::kOuter && !matrix ? Distribution::kRademacher : distribution;
  args.columns = matrix && args.numel > 0 ? args.numel / rows : 0;
}

// Elements that one task of noise, or of a kernel that updates a parameter, covers at most: a run of the flat tensor or, of
// directions "outer", a tile of rows and columns.
constexpr int64_t kTaskElements = 2048;
constexpr int64_t flat_tasks(int64_t numel) { return (numel + kTaskElements - 1) / kTaskElements; }

// The tiles of a matrix, row by row of tiles. With few seeds memory sets the pace, so tiles are long runs of it; with more of
// them they get narrower, so that the signs of the columns stay in the first-level cache, and higher, so that they serve many
// rows.
struct MatrixTiles {
  int64_t width, height, across, down;
};
constexpr int64_t kSeedsTogether = 32, kLeastWidth = 128, kTileHeight = 256;
constexpr int64_t kColumnSigns = kSeedsTogether * kLeastWidth;  // of all seeds that are worked on together
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr MatrixTiles matrix_tiles(int64_t rows, int64_t columns, int64_t seeds) {
  const int64_t together = seeds < 1 ? 1 : seeds < kSeedsTogether ? seeds : kSeedsTogether;
  const int64_t fitting_columns = kColumnSigns / together / 16 * 16;
  const int64_t widest = fitting_columns < kTaskElements ? fitting_columns : kTaskElements;
  const int64_t strips = ceil_div(columns, widest);
  const int64_t width = strips == 1 ? columns : ceil_div(ceil_div(columns, strips), 16) * 16;  // strips of about one width
  const int64_t fitting_rows = kTaskElements / width;
  const int64_t height = fitting_rows < kTileHeight ? fitting_rows : kTileHeight;
  return {width, height, ceil_div(columns, width), ceil_div(rows, height)};
}

template <typename Args>
constexpr int64_t tasks_of(const Args& args) {
  if (args.distribution != Distribution::kOuter || args.numel == 0) return flat_tasks(args.numel);
  const MatrixTiles tiles = matrix_tiles(args.numel / args.columns, args.columns, args.count);
  return tiles.across * tiles.down;
}

// mp_lora_shrink works on any range of rows. mp_lora_expand works on tiles of `tile_columns` columns of the output and on
// `units` of groups: unit k is the groups k, k + units, k + 2 * units, ..., which have one seed, so that the noise of a tile is
// made once for all of them. Task tile * units + k covers the rows of unit k in one tile; tasks of a tile that run after one
// another share its part of B. Wide tiles read memory in long runs; narrow ones keep every thread busy. Neither the tiles nor
// the units change a bit of the result.
constexpr int64_t kColumnStep = 64;    // tiles start on whole vectors of every instruction set
constexpr int64_t kTileFloats = 4096;  // of B in a tile at most: B, noise and their sum share the first-level cache

// groups / 2 if the second half of the groups repeats the seeds of the first, as in the two-sided estimator; else groups.
inline int64_t mp_lora_units(const int64_t* seeds, int64_t groups) {
  const int64_t half = groups / 2;
  if (groups % 2 != 0) return groups;
  for (int64_t group = 0; group < half; ++group)
    if (seeds[group] != seeds[group + half]) return groups;
  return half;
}
constexpr int64_t mp_lora_tile_columns(int64_t out_features, int64_t rank, int64_t most_steps) {
  const int64_t steps = (out_features + kColumnStep - 1) / kColumnStep;
  const int64_t fit_cache = kTileFloats / (rank * kColumnStep);
  const int64_t most = fit_cache < most_steps ? fit_cache : most_steps;
  if (most <= 1) return kColumnStep;
  const int64_t tiles = (steps + most - 1) / most;
  return (steps + tiles - 1) / tiles * kColumnStep;  // tiles of about one size
}
constexpr int64_t mp_lora_tiles(int64_t out_features, int64_t tile_columns) {
  return (out_features + tile_columns - 1) / tile_columns;
}

// Tiles of columns of directions "outer", whose panel of B serves all groups.
constexpr int64_t mp_lora_outer_columns(const MpLoraArgs& args) {
  return mp_lora_tile_columns(args.out_features, args.rank, args.out_features);
}
constexpr int64_t mp_lora_scratch(const MpLoraArgs& args) {
  const int64_t shrunk = args.rows * args.rank;
  if (args.distribution != Distribution::kOuter) return shrunk;
  const int64_t columns = mp_lora_outer_columns(args), panel = mp_lora_tiles(args.out_features, columns) * columns * args.rank;
  return shrunk + args.rows + panel + args.groups * sign_bytes(args.out_features + args.rank) / 4;
}

// One instruction set's compilation of every kernel.
struct Kernels {
  const char* name;
  void (*signs)(const SignsArgs&, int64_t begin, int64_t end);  // of seeds begin .. end - 1
  void (*noise)(const NoiseArgs&, int64_t begin, int64_t end);
  void (*perturb)(const PerturbArgs&, int64_t begin, int64_t end);
  void (*zo_momentum)(const ZoMomentumArgs&, int64_t begin, int64_t end);
  void (*zo_adam)(const ZoAdamArgs&, int64_t begin, int64_t end);
  void (*zo_sign)(const ZoSignArgs&, int64_t begin, int64_t end);
  void (*mp_lora_shrink)(const MpLoraArgs&, int64_t first_row, int64_t last_row);
  void (*mp_lora_expand)(const MpLoraArgs&, int64_t begin, int64_t end);
  void (*mp_lora_pack)(const MpLoraArgs&, int64_t begin, int64_t end);             // tiles of columns
  void (*mp_lora_slopes)(const MpLoraArgs&, int64_t first_row, int64_t last_row);  // after signs and shrink
  void (*mp_lora_outer)(const MpLoraArgs&, int64_t first_row, int64_t last_row, int64_t begin, int64_t end);  // tiles as well
  void (*mp_outer)(const MpOuterArgs&, int64_t first_row, int64_t last_row);                                  // after signs
};

// The best instruction set this machine has, or the one that the environment variable MOBIZO_CPU names. Null if MOBIZO_CPU
// names one that does not exist or that this machine lacks; *error then says so in a sentence.
const Kernels* select_kernels(const char** error);

}  // namespace mobizo
