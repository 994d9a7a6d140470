// AVX-512 (F, BW, DQ, VL). See vec.h for what each name means.
#pragma once

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__)
#error "simd/avx512.h needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif

#include <immintrin.h>

#define MOBIZO_ISA avx512

namespace mobizo::avx512 {

constexpr int kLanes = 16;
constexpr int kCounters = kLanes / 2;
constexpr int kPhiloxUnroll = 4;  // four Words of each kind: 16 registers of state hide the latency of the multiply
constexpr int kTileRows = 6;      // 6 x 4 accumulators, 4 operands and a broadcast fill 29 of the 32 registers
constexpr int kTileVecs = 4;
constexpr int kDotRows = 6;

struct F32 {
  __m512 v;
};
struct U32 {
  __m512i v;
};
struct Mask {
  __mmask16 v;
};
struct Word {
  __m512i v;  // 64-bit lanes, the word in the low half; the high half is never read
};

MOBIZO_INLINE F32 broadcast(float x) { return {_mm512_set1_ps(x)}; }
MOBIZO_INLINE U32 broadcast(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
MOBIZO_INLINE F32 zero() { return {_mm512_setzero_ps()}; }

MOBIZO_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
MOBIZO_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
MOBIZO_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
MOBIZO_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
MOBIZO_INLINE F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }

MOBIZO_INLINE U32 operator+(U32 a, U32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
MOBIZO_INLINE U32 operator-(U32 a, U32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
MOBIZO_INLINE U32 operator&(U32 a, U32 b) { return {_mm512_and_si512(a.v, b.v)}; }
MOBIZO_INLINE U32 operator|(U32 a, U32 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
MOBIZO_INLINE U32 shift_right(U32 a) {
  return {_mm512_srli_epi32(a.v, n)};
}
template <int n>
MOBIZO_INLINE U32 shift_right_signed(U32 a) {
  return {_mm512_srai_epi32(a.v, n)};
}

MOBIZO_INLINE F32 as_float(U32 a) { return {_mm512_castsi512_ps(a.v)}; }
MOBIZO_INLINE U32 as_bits(F32 a) { return {_mm512_castps_si512(a.v)}; }
MOBIZO_INLINE F32 signed_to_float(U32 a) { return {_mm512_cvtepi32_ps(a.v)}; }

MOBIZO_INLINE Mask test(U32 a, U32 bit) { return {_mm512_test_epi32_mask(a.v, bit.v)}; }
MOBIZO_INLINE F32 select(Mask m, F32 yes, F32 no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
// v with its sign flipped where the top bit of `signs` is set: v ^ (signs & 0x80000000) in one instruction.
MOBIZO_INLINE F32 flip_sign(F32 v, U32 signs) {
  const __m512i top = _mm512_set1_epi32(INT32_MIN);
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(v.v), signs.v, top, 0x78))};
}
MOBIZO_INLINE F32 flip_signs(F32 v, const uint8_t* bits) {
  uint16_t b;
  std::memcpy(&b, bits, sizeof b);
  const __m512i top = _mm512_set1_epi32(INT32_MIN);
  const __m512i x = _mm512_castps_si512(v.v);
  return {_mm512_castsi512_ps(_mm512_mask_xor_epi32(x, b, x, top))};
}

// --- memory -----------------------------------------------------------------------------------------------------------------
MOBIZO_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

MOBIZO_INLINE F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
MOBIZO_INLINE F32 load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
MOBIZO_INLINE void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
MOBIZO_INLINE void store(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, first(n), a.v); }

MOBIZO_INLINE F32 widen_bfloat16(__m256i h) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))}; }
MOBIZO_INLINE __m256i narrow_bfloat16(F32 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  rounded = _mm512_srli_epi32(rounded, 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC0)));
}
MOBIZO_INLINE F32 load(const BFloat16* p) { return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
MOBIZO_INLINE F32 load(const BFloat16* p, int n) { return widen_bfloat16(_mm256_maskz_loadu_epi16(first(n), p)); }
MOBIZO_INLINE void store(BFloat16* p, F32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bfloat16(a)); }
MOBIZO_INLINE void store(BFloat16* p, F32 a, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow_bfloat16(a)); }

MOBIZO_INLINE __m256i narrow_float16(F32 a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }
MOBIZO_INLINE F32 load(const Float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
MOBIZO_INLINE F32 load(const Float16* p, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))}; }
MOBIZO_INLINE void store(Float16* p, F32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_float16(a)); }
MOBIZO_INLINE void store(Float16* p, F32 a, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow_float16(a)); }

MOBIZO_INLINE void load_transposed(const float* p, int64_t stride, F32 out[4]) {
  __m512 quad[4];  // quad[i]: the four values of rows i, i + 4, i + 8, i + 12
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const float* row = p + i * stride;
    quad[i] = _mm512_castps128_ps512(_mm_loadu_ps(row));
    quad[i] = _mm512_insertf32x4(quad[i], _mm_loadu_ps(row + 4 * stride), 1);
    quad[i] = _mm512_insertf32x4(quad[i], _mm_loadu_ps(row + 8 * stride), 2);
    quad[i] = _mm512_insertf32x4(quad[i], _mm_loadu_ps(row + 12 * stride), 3);
  }
  const __m512d lo01 = _mm512_castps_pd(_mm512_unpacklo_ps(quad[0], quad[1]));
  const __m512d lo23 = _mm512_castps_pd(_mm512_unpacklo_ps(quad[2], quad[3]));
  const __m512d hi01 = _mm512_castps_pd(_mm512_unpackhi_ps(quad[0], quad[1]));
  const __m512d hi23 = _mm512_castps_pd(_mm512_unpackhi_ps(quad[2], quad[3]));
  out[0] = {_mm512_castpd_ps(_mm512_unpacklo_pd(lo01, lo23))};
  out[1] = {_mm512_castpd_ps(_mm512_unpackhi_pd(lo01, lo23))};
  out[2] = {_mm512_castpd_ps(_mm512_unpacklo_pd(hi01, hi23))};
  out[3] = {_mm512_castpd_ps(_mm512_unpackhi_pd(hi01, hi23))};
}
MOBIZO_INLINE U32 load_bits(const uint8_t* bits, int64_t first, int64_t stride) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i bit = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                                       _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(stride))));
  const __m512i words = _mm512_i32gather_epi32(_mm512_srli_epi32(bit, 3), bits, 1);
  return {_mm512_srlv_epi32(words, _mm512_and_si512(bit, _mm512_set1_epi32(7)))};
}

// --- Philox words -----------------------------------------------------------------------------------------------------------
MOBIZO_INLINE Word broadcast_word(uint32_t x) { return {_mm512_set1_epi64(x)}; }
// The low words of counters c .. c + 7, in the lane order that makes interleave two unpacks.
MOBIZO_INLINE Word first_counters(uint32_t c) {
  return {_mm512_add_epi64(_mm512_set1_epi64(c), _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0))};
}
MOBIZO_INLINE Word multiply(Word a, uint32_t constant) { return {_mm512_mul_epu32(a.v, _mm512_set1_epi64(constant))}; }
MOBIZO_INLINE Word high(Word product) { return {_mm512_srli_epi64(product.v, 32)}; }
MOBIZO_INLINE Word low(Word product) { return product; }
MOBIZO_INLINE Word xor3(Word a, Word b, Word c) { return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)}; }
MOBIZO_INLINE U32 pair(Word a, Word b) {
  return {_mm512_mask_shuffle_epi32(a.v, 0xAAAA, b.v, static_cast<_MM_PERM_ENUM>(0xA0))};
}
MOBIZO_INLINE void interleave(F32 x, F32 y, F32& first_half, F32& second_half) {
  first_half = {_mm512_unpacklo_ps(x.v, y.v)};
  second_half = {_mm512_unpackhi_ps(x.v, y.v)};
}

// --- reductions -------------------------------------------------------------------------------------------------------------
MOBIZO_INLINE void sum_lanes(float* out, F32 a, F32 b, F32 c, F32 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 quads = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

// --- steps of optimizers ----------------------------------------------------------------------------------------------------
MOBIZO_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
MOBIZO_INLINE Mask operator<(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }

}  // namespace mobizo::avx512
