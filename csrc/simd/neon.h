// NEON (aarch64, ARMv8.0). A vector is a pair of 128-bit registers, so that it has the eight lanes of AVX2 and twice the
// instruction-level parallelism of a single one. See vec.h for what each name means.
#pragma once

#if !defined(__aarch64__) || !defined(__ARM_NEON)
#error "simd/neon.h needs an aarch64 target"
#endif

#include <arm_neon.h>

#define MOBIZO_ISA neon

namespace mobizo::neon {

constexpr int kLanes = 8;
constexpr int kCounters = kLanes / 2;
constexpr int kPhiloxUnroll = 4;
constexpr int kTileRows = 6;  // 6 x 2 accumulators take 24 of the 32 registers, the operands 4 more
constexpr int kTileVecs = 2;
constexpr int kDotRows = 2;

struct F32 {
  float32x4_t lo, hi;
};
struct U32 {
  uint32x4_t lo, hi;
};
struct Mask {
  uint32x4_t lo, hi;  // all ones where true
};
struct Word {
  uint32x4_t v;
};
struct Product {
  uint64x2_t lo, hi;
};

MOBIZO_INLINE F32 broadcast(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
MOBIZO_INLINE U32 broadcast(uint32_t x) { return {vdupq_n_u32(x), vdupq_n_u32(x)}; }
MOBIZO_INLINE F32 zero() { return broadcast(0.0f); }

MOBIZO_INLINE F32 operator+(F32 a, F32 b) { return {vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)}; }
MOBIZO_INLINE F32 operator-(F32 a, F32 b) { return {vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)}; }
MOBIZO_INLINE F32 operator*(F32 a, F32 b) { return {vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)}; }
MOBIZO_INLINE F32 fma(F32 a, F32 b, F32 c) { return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)}; }
MOBIZO_INLINE F32 sqrt(F32 a) { return {vsqrtq_f32(a.lo), vsqrtq_f32(a.hi)}; }

MOBIZO_INLINE U32 operator+(U32 a, U32 b) { return {vaddq_u32(a.lo, b.lo), vaddq_u32(a.hi, b.hi)}; }
MOBIZO_INLINE U32 operator-(U32 a, U32 b) { return {vsubq_u32(a.lo, b.lo), vsubq_u32(a.hi, b.hi)}; }
MOBIZO_INLINE U32 operator&(U32 a, U32 b) { return {vandq_u32(a.lo, b.lo), vandq_u32(a.hi, b.hi)}; }
MOBIZO_INLINE U32 operator|(U32 a, U32 b) { return {vorrq_u32(a.lo, b.lo), vorrq_u32(a.hi, b.hi)}; }
template <int n>
MOBIZO_INLINE U32 shift_right(U32 a) {
  return {vshrq_n_u32(a.lo, n), vshrq_n_u32(a.hi, n)};
}
template <int n>
MOBIZO_INLINE U32 shift_right_signed(U32 a) {
  return {vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a.lo), n)),
          vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a.hi), n))};
}

MOBIZO_INLINE F32 as_float(U32 a) { return {vreinterpretq_f32_u32(a.lo), vreinterpretq_f32_u32(a.hi)}; }
MOBIZO_INLINE U32 as_bits(F32 a) { return {vreinterpretq_u32_f32(a.lo), vreinterpretq_u32_f32(a.hi)}; }
MOBIZO_INLINE F32 signed_to_float(U32 a) {
  return {vcvtq_f32_s32(vreinterpretq_s32_u32(a.lo)), vcvtq_f32_s32(vreinterpretq_s32_u32(a.hi))};
}

MOBIZO_INLINE Mask test(U32 a, U32 bit) { return {vtstq_u32(a.lo, bit.lo), vtstq_u32(a.hi, bit.hi)}; }
MOBIZO_INLINE F32 select(Mask m, F32 yes, F32 no) { return {vbslq_f32(m.lo, yes.lo, no.lo), vbslq_f32(m.hi, yes.hi, no.hi)}; }
MOBIZO_INLINE float32x4_t flip_sign(float32x4_t v, uint32x4_t signs) {
  const uint32x4_t top = vdupq_n_u32(0x80000000u);
  return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(v), vandq_u32(signs, top)));
}
MOBIZO_INLINE F32 flip_sign(F32 v, U32 signs) { return {flip_sign(v.lo, signs.lo), flip_sign(v.hi, signs.hi)}; }
MOBIZO_INLINE F32 flip_signs(F32 v, const uint8_t* bits) {
  const int32x4_t shift_lo = {31, 30, 29, 28}, shift_hi = {27, 26, 25, 24};
  const uint32x4_t spread = vdupq_n_u32(*bits);
  return flip_sign(v, {vshlq_u32(spread, shift_lo), vshlq_u32(spread, shift_hi)});
}

// --- memory -----------------------------------------------------------------------------------------------------------------
MOBIZO_INLINE F32 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
MOBIZO_INLINE void store(float* p, F32 a) {
  vst1q_f32(p, a.lo);
  vst1q_f32(p + 4, a.hi);
}

MOBIZO_INLINE F32 load(const BFloat16* p) {
  const uint16x8_t h = vld1q_u16(reinterpret_cast<const uint16_t*>(p));
  return as_float({vshll_n_u16(vget_low_u16(h), 16), vshll_high_n_u16(h, 16)});
}
MOBIZO_INLINE uint32x4_t round_bfloat16(float32x4_t a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
  return vbslq_u32(vceqq_f32(a, a), rounded, vdupq_n_u32(0x7FC00000u));
}
MOBIZO_INLINE void store(BFloat16* p, F32 a) {
  const uint16x4_t lo = vshrn_n_u32(round_bfloat16(a.lo), 16);
  vst1q_u16(reinterpret_cast<uint16_t*>(p), vshrn_high_n_u32(lo, round_bfloat16(a.hi), 16));
}

MOBIZO_INLINE F32 load(const Float16* p) {
  const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p)));
  return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}
MOBIZO_INLINE void store(Float16* p, F32 a) {
  const float16x8_t h = vcvt_high_f16_f32(vcvt_f16_f32(a.lo), a.hi);
  vst1q_u16(reinterpret_cast<uint16_t*>(p), vreinterpretq_u16_f16(h));
}

MOBIZO_INLINE void load_transposed(const float* p, int64_t stride, float32x4_t out[4]) {
  const float32x4_t row0 = vld1q_f32(p), row1 = vld1q_f32(p + stride);
  const float32x4_t row2 = vld1q_f32(p + 2 * stride), row3 = vld1q_f32(p + 3 * stride);
  const float64x2_t even01 = vreinterpretq_f64_f32(vtrn1q_f32(row0, row1)),
                    odd01 = vreinterpretq_f64_f32(vtrn2q_f32(row0, row1));
  const float64x2_t even23 = vreinterpretq_f64_f32(vtrn1q_f32(row2, row3)),
                    odd23 = vreinterpretq_f64_f32(vtrn2q_f32(row2, row3));
  out[0] = vreinterpretq_f32_f64(vtrn1q_f64(even01, even23));
  out[1] = vreinterpretq_f32_f64(vtrn1q_f64(odd01, odd23));
  out[2] = vreinterpretq_f32_f64(vtrn2q_f64(even01, even23));
  out[3] = vreinterpretq_f32_f64(vtrn2q_f64(odd01, odd23));
}
MOBIZO_INLINE void load_transposed(const float* p, int64_t stride, F32 out[4]) {
  float32x4_t lo[4], hi[4];
  load_transposed(p, stride, lo);
  load_transposed(p + 4 * stride, stride, hi);
  for (int j = 0; j < 4; ++j) out[j] = {lo[j], hi[j]};
}
MOBIZO_INLINE uint32x4_t load_four_bits(const uint8_t* bits, int64_t first, int64_t stride) {
  uint32_t words[4];
  int32_t shifts[4];
  for (int i = 0; i < 4; ++i) {
    const int64_t bit = first + i * stride;
    std::memcpy(&words[i], bits + bit / 8, sizeof words[i]);
    shifts[i] = -static_cast<int32_t>(bit % 8);
  }
  return vshlq_u32(vld1q_u32(words), vld1q_s32(shifts));
}
MOBIZO_INLINE U32 load_bits(const uint8_t* bits, int64_t first, int64_t stride) {
  return {load_four_bits(bits, first, stride), load_four_bits(bits, first + 4 * stride, stride)};
}

// --- Philox words -----------------------------------------------------------------------------------------------------------
MOBIZO_INLINE Word broadcast_word(uint32_t x) { return {vdupq_n_u32(x)}; }
MOBIZO_INLINE Word first_counters(uint32_t c) {
  const uint32x4_t ascending = {0, 1, 2, 3};
  return {vaddq_u32(vdupq_n_u32(c), ascending)};
}
MOBIZO_INLINE Product multiply(Word a, uint32_t constant) {
  const uint32x4_t k = vdupq_n_u32(constant);
  return {vmull_u32(vget_low_u32(a.v), vget_low_u32(k)), vmull_high_u32(a.v, k)};
}
MOBIZO_INLINE Word high(Product p) { return {vuzp2q_u32(vreinterpretq_u32_u64(p.lo), vreinterpretq_u32_u64(p.hi))}; }
MOBIZO_INLINE Word low(Product p) { return {vuzp1q_u32(vreinterpretq_u32_u64(p.lo), vreinterpretq_u32_u64(p.hi))}; }
MOBIZO_INLINE Word xor3(Word a, Word b, Word c) { return {veorq_u32(veorq_u32(a.v, b.v), c.v)}; }
MOBIZO_INLINE U32 pair(Word a, Word b) { return {vzip1q_u32(a.v, b.v), vzip2q_u32(a.v, b.v)}; }
MOBIZO_INLINE void interleave(F32 x, F32 y, F32& first_half, F32& second_half) {
  first_half = {vzip1q_f32(x.lo, y.lo), vzip2q_f32(x.lo, y.lo)};
  second_half = {vzip1q_f32(x.hi, y.hi), vzip2q_f32(x.hi, y.hi)};
}

// --- reductions -------------------------------------------------------------------------------------------------------------
MOBIZO_INLINE void sum_lanes(float* out, F32 a, F32 b, F32 c, F32 d) {
  const float32x4_t ab = vpaddq_f32(vaddq_f32(a.lo, a.hi), vaddq_f32(b.lo, b.hi));
  const float32x4_t cd = vpaddq_f32(vaddq_f32(c.lo, c.hi), vaddq_f32(d.lo, d.hi));
  vst1q_f32(out, vpaddq_f32(ab, cd));
}

// --- steps of optimizers ----------------------------------------------------------------------------------------------------
MOBIZO_INLINE F32 operator/(F32 a, F32 b) { return {vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)}; }
MOBIZO_INLINE Mask operator<(F32 a, F32 b) { return {vcltq_f32(a.lo, b.lo), vcltq_f32(a.hi, b.hi)}; }

}  // namespace mobizo::neon

#include "partial.h"
