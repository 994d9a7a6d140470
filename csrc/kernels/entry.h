// The entry points that each instruction set defines in its namespace, and the step from a DType to a C++ type that they share.
// Include after simd/vec.h, which names the namespace.
#pragma once

#include "kernels.h"

namespace mobizo::MOBIZO_ISA {

void signs(const SignsArgs& args, int64_t begin, int64_t end);
void noise(const NoiseArgs& args, int64_t begin, int64_t end);
void perturb(const PerturbArgs& args, int64_t begin, int64_t end);
void zo_momentum(const ZoMomentumArgs& args, int64_t begin, int64_t end);
void zo_adam(const ZoAdamArgs& args, int64_t begin, int64_t end);
void zo_sign(const ZoSignArgs& args, int64_t begin, int64_t end);
void mp_lora_shrink(const MpLoraArgs& args, int64_t first_row, int64_t last_row);
void mp_lora_expand(const MpLoraArgs& args, int64_t begin, int64_t end);
void mp_lora_pack(const MpLoraArgs& args, int64_t begin, int64_t end);
void mp_lora_slopes(const MpLoraArgs& args, int64_t first_row, int64_t last_row);
void mp_lora_outer(const MpLoraArgs& args, int64_t first_row, int64_t last_row, int64_t begin, int64_t end);
void mp_outer(const MpOuterArgs& args, int64_t first_row, int64_t last_row);

// f(T{}) for the element type T that dtype names.
template <typename F>
MOBIZO_INLINE void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat16:
      return f(Float16{});
  }
}

// f(i) for whole vectors of `count` elements, f(i, n) for the rest.
template <typename F>
MOBIZO_INLINE void each_vector(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i);
  if (i < count) f(i, static_cast<int>(count - i));
}

// f(integral constant n) for the n in [1, max] that equals `n` at run time.
template <int value>
struct Constant {
  static constexpr int n = value;
};
template <int max, typename F>
MOBIZO_INLINE void with_constant(int64_t n, const F& f) {
  if constexpr (max > 1) {
    if (n < max) return with_constant<max - 1>(n, f);
  }
  f(Constant<max>{});
}

// `count` elements, rounded up.
MOBIZO_INLINE int64_t whole_vectors(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

MOBIZO_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// sum[row][v] += factors[row * row_step + j * step] * table[j * width + vector v] for j from 0 to count - 1, in that order.
template <int rows, int vecs>
MOBIZO_INLINE void add_product(const float* factors, int64_t row_step, int64_t step, const float* table, int64_t width,
                               int64_t count, F32 sum[rows][vecs]) {
  for (int64_t j = 0; j < count; ++j) {
    F32 values[vecs];
#pragma GCC unroll 4
    for (int v = 0; v < vecs; ++v) values[v] = load(table + j * width + v * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < rows; ++row) {
      const F32 factor = broadcast(factors[row * row_step + j * step]);
#pragma GCC unroll 4
      for (int v = 0; v < vecs; ++v) sum[row][v] = fma(factor, values[v], sum[row][v]);
    }
  }
}

}  // namespace mobizo::MOBIZO_ISA
