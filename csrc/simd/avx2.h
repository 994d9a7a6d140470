// AVX2 with FMA and F16C. See vec.h for what each name means.
#pragma once

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "simd/avx2.h needs -mavx2 -mfma -mf16c"
#endif

#include <immintrin.h>

#define MOBIZO_ISA avx2

namespace mobizo::avx2 {

constexpr int kLanes = 8;
constexpr int kCounters = kLanes / 2;
constexpr int kPhiloxUnroll = 2;
constexpr int kTileRows = 6;  // 6 x 2 accumulators, 2 operands and a broadcast fill 15 of the 16 registers
constexpr int kTileVecs = 2;
constexpr int kDotRows = 3;

struct F32 {
  __m256 v;
};
struct U32 {
  __m256i v;
};
struct Mask {
  __m256 v;  // all ones where true
};
struct Word {
  __m256i v;  // 64-bit lanes, the word in the low half; the high half is never read
};

MOBIZO_INLINE F32 broadcast(float x) { return {_mm256_set1_ps(x)}; }
MOBIZO_INLINE U32 broadcast(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
MOBIZO_INLINE F32 zero() { return {_mm256_setzero_ps()}; }

MOBIZO_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
MOBIZO_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
MOBIZO_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
MOBIZO_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
MOBIZO_INLINE F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }

MOBIZO_INLINE U32 operator+(U32 a, U32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
MOBIZO_INLINE U32 operator-(U32 a, U32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
MOBIZO_INLINE U32 operator&(U32 a, U32 b) { return {_mm256_and_si256(a.v, b.v)}; }
MOBIZO_INLINE U32 operator|(U32 a, U32 b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int n>
MOBIZO_INLINE U32 shift_right(U32 a) {
  return {_mm256_srli_epi32(a.v, n)};
}
template <int n>
MOBIZO_INLINE U32 shift_right_signed(U32 a) {
  return {_mm256_srai_epi32(a.v, n)};
}

MOBIZO_INLINE F32 as_float(U32 a) { return {_mm256_castsi256_ps(a.v)}; }
MOBIZO_INLINE U32 as_bits(F32 a) { return {_mm256_castps_si256(a.v)}; }
MOBIZO_INLINE F32 signed_to_float(U32 a) { return {_mm256_cvtepi32_ps(a.v)}; }

MOBIZO_INLINE Mask test(U32 a, U32 bit) {
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(a.v, bit.v), bit.v))};
}
MOBIZO_INLINE F32 select(Mask m, F32 yes, F32 no) { return {_mm256_blendv_ps(no.v, yes.v, m.v)}; }
MOBIZO_INLINE F32 flip_sign(F32 v, U32 signs) {
  const __m256 top = _mm256_castsi256_ps(_mm256_set1_epi32(INT32_MIN));
  return {_mm256_xor_ps(v.v, _mm256_and_ps(_mm256_castsi256_ps(signs.v), top))};
}
MOBIZO_INLINE F32 flip_signs(F32 v, const uint8_t* bits) {
  const __m256i spread = _mm256_sllv_epi32(_mm256_set1_epi32(*bits), _mm256_set_epi32(24, 25, 26, 27, 28, 29, 30, 31));
  return flip_sign(v, {spread});
}

// --- memory -----------------------------------------------------------------------------------------------------------------
MOBIZO_INLINE F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
MOBIZO_INLINE void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }

MOBIZO_INLINE F32 load(const BFloat16* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))};
}
MOBIZO_INLINE void store(BFloat16* p, F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  rounded = _mm256_srli_epi32(rounded, 16);
  const __m256 nan = _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), _mm256_castps_si256(nan));
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

MOBIZO_INLINE F32 load(const Float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
MOBIZO_INLINE void store(Float16* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}

MOBIZO_INLINE void load_transposed(const float* p, int64_t stride, F32 out[4]) {
  __m256 quad[4];  // quad[i]: the four values of rows i and i + 4
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const float* row = p + i * stride;
    quad[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(row + 4 * stride), 1);
  }
  const __m256d lo01 = _mm256_castps_pd(_mm256_unpacklo_ps(quad[0], quad[1]));
  const __m256d lo23 = _mm256_castps_pd(_mm256_unpacklo_ps(quad[2], quad[3]));
  const __m256d hi01 = _mm256_castps_pd(_mm256_unpackhi_ps(quad[0], quad[1]));
  const __m256d hi23 = _mm256_castps_pd(_mm256_unpackhi_ps(quad[2], quad[3]));
  out[0] = {_mm256_castpd_ps(_mm256_unpacklo_pd(lo01, lo23))};
  out[1] = {_mm256_castpd_ps(_mm256_unpackhi_pd(lo01, lo23))};
  out[2] = {_mm256_castpd_ps(_mm256_unpacklo_pd(hi01, hi23))};
  out[3] = {_mm256_castpd_ps(_mm256_unpackhi_pd(hi01, hi23))};
}
MOBIZO_INLINE U32 load_bits(const uint8_t* bits, int64_t first, int64_t stride) {
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  const __m256i bit = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first)),
                                       _mm256_mullo_epi32(lane, _mm256_set1_epi32(static_cast<int>(stride))));
  const __m256i words = _mm256_i32gather_epi32(reinterpret_cast<const int*>(bits), _mm256_srli_epi32(bit, 3), 1);
  return {_mm256_srlv_epi32(words, _mm256_and_si256(bit, _mm256_set1_epi32(7)))};
}

// --- Philox words -----------------------------------------------------------------------------------------------------------
MOBIZO_INLINE Word broadcast_word(uint32_t x) { return {_mm256_set1_epi64x(x)}; }
// The low words of counters c .. c + 3, in the lane order that makes interleave two unpacks.
MOBIZO_INLINE Word first_counters(uint32_t c) {
  return {_mm256_add_epi64(_mm256_set1_epi64x(c), _mm256_set_epi64x(3, 1, 2, 0))};
}
MOBIZO_INLINE Word multiply(Word a, uint32_t constant) { return {_mm256_mul_epu32(a.v, _mm256_set1_epi64x(constant))}; }
MOBIZO_INLINE Word high(Word product) { return {_mm256_srli_epi64(product.v, 32)}; }
MOBIZO_INLINE Word low(Word product) { return product; }
MOBIZO_INLINE Word xor3(Word a, Word b, Word c) { return {_mm256_xor_si256(_mm256_xor_si256(a.v, b.v), c.v)}; }
MOBIZO_INLINE U32 pair(Word a, Word b) { return {_mm256_blend_epi32(a.v, _mm256_slli_epi64(b.v, 32), 0xAA)}; }
MOBIZO_INLINE void interleave(F32 x, F32 y, F32& first_half, F32& second_half) {
  first_half = {_mm256_unpacklo_ps(x.v, y.v)};
  second_half = {_mm256_unpackhi_ps(x.v, y.v)};
}

// --- reductions -------------------------------------------------------------------------------------------------------------
MOBIZO_INLINE void sum_lanes(float* out, F32 a, F32 b, F32 c, F32 d) {
  const __m256 quads = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
}

// --- steps of optimizers ----------------------------------------------------------------------------------------------------
MOBIZO_INLINE F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
MOBIZO_INLINE Mask operator<(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }

}  // namespace mobizo::avx2

#include "partial.h"
