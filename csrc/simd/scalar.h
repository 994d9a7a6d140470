// Portable C++: eight-lane vectors as plain arrays. The reference for the intrinsics, and the fallback where there are none.
// See vec.h for what each name means.
#pragma once

#define MOBIZO_ISA scalar

namespace mobizo::scalar {

constexpr int kLanes = 8;
constexpr int kCounters = kLanes / 2;
constexpr int kPhiloxUnroll = 1;
constexpr int kTileRows = 4;
constexpr int kTileVecs = 1;
constexpr int kDotRows = 1;

struct F32 {
  float v[kLanes];
};
struct U32 {
  uint32_t v[kLanes];
};
struct Mask {
  bool v[kLanes];
};
struct Word {
  uint32_t v[kCounters];
};
struct Product {
  uint64_t v[kCounters];
};

// result[i] = f(i) for every lane.
template <typename Vector, typename F>
MOBIZO_INLINE Vector each(F f) {
  Vector result;
  for (int i = 0; i < static_cast<int>(sizeof(result.v) / sizeof(result.v[0])); ++i) result.v[i] = f(i);
  return result;
}

template <typename To, typename From>
MOBIZO_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs two types of one size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

MOBIZO_INLINE F32 broadcast(float x) {
  return each<F32>([=](int) { return x; });
}
MOBIZO_INLINE U32 broadcast(uint32_t x) {
  return each<U32>([=](int) { return x; });
}
MOBIZO_INLINE F32 zero() { return broadcast(0.0f); }

MOBIZO_INLINE F32 operator+(F32 a, F32 b) {
  return each<F32>([&](int i) { return a.v[i] + b.v[i]; });
}
MOBIZO_INLINE F32 operator-(F32 a, F32 b) {
  return each<F32>([&](int i) { return a.v[i] - b.v[i]; });
}
MOBIZO_INLINE F32 operator*(F32 a, F32 b) {
  return each<F32>([&](int i) { return a.v[i] * b.v[i]; });
}
MOBIZO_INLINE F32 fma(F32 a, F32 b, F32 c) {
  return each<F32>([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
MOBIZO_INLINE F32 sqrt(F32 a) {
  return each<F32>([&](int i) { return __builtin_sqrtf(a.v[i]); });
}

MOBIZO_INLINE U32 operator+(U32 a, U32 b) {
  return each<U32>([&](int i) { return a.v[i] + b.v[i]; });
}
MOBIZO_INLINE U32 operator-(U32 a, U32 b) {
  return each<U32>([&](int i) { return a.v[i] - b.v[i]; });
}
MOBIZO_INLINE U32 operator&(U32 a, U32 b) {
  return each<U32>([&](int i) { return a.v[i] & b.v[i]; });
}
MOBIZO_INLINE U32 operator|(U32 a, U32 b) {
  return each<U32>([&](int i) { return a.v[i] | b.v[i]; });
}
template <int n>
MOBIZO_INLINE U32 shift_right(U32 a) {
  return each<U32>([&](int i) { return a.v[i] >> n; });
}
template <int n>
MOBIZO_INLINE U32 shift_right_signed(U32 a) {
  return each<U32>([&](int i) { return static_cast<uint32_t>(static_cast<int32_t>(a.v[i]) >> n); });
}

MOBIZO_INLINE F32 as_float(U32 a) { return bit_cast<F32>(a); }
MOBIZO_INLINE U32 as_bits(F32 a) { return bit_cast<U32>(a); }
MOBIZO_INLINE F32 signed_to_float(U32 a) {
  return each<F32>([&](int i) { return static_cast<float>(static_cast<int32_t>(a.v[i])); });
}

MOBIZO_INLINE Mask test(U32 a, U32 bit) {
  return each<Mask>([&](int i) { return (a.v[i] & bit.v[i]) != 0; });
}
MOBIZO_INLINE F32 select(Mask m, F32 yes, F32 no) {
  return each<F32>([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
}
MOBIZO_INLINE F32 flip_sign(F32 v, U32 signs) {
  const U32 bits = as_bits(v);
  return as_float(each<U32>([&](int i) { return bits.v[i] ^ (signs.v[i] & 0x80000000u); }));
}
MOBIZO_INLINE F32 flip_signs(F32 v, const uint8_t* bits) {
  const uint32_t byte = *bits;
  return flip_sign(v, each<U32>([&](int i) { return byte << (31 - i); }));
}

// --- memory -----------------------------------------------------------------------------------------------------------------
MOBIZO_INLINE float widen(float x) { return x; }
MOBIZO_INLINE float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
MOBIZO_INLINE float widen(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7FFFu;
  if (rest >= 0x7C00u) return bit_cast<float>(sign | 0x7F800000u | (rest & 0x3FFu) << 13);  // infinity, NaN
  // Shifted into place, the exponent is 112 too small; the product repairs it, and is exact for subnormals as well.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(rest << 13) * 0x1p112f));
}

MOBIZO_INLINE void narrow(float x, float* out) { *out = x; }
MOBIZO_INLINE void narrow(float x, BFloat16* out) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  out->bits = x != x ? 0x7FC0 : static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
MOBIZO_INLINE void narrow(float x, Float16* out) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (rest > 0x7F800000u) {
    half = 0x7E00u;  // NaN
  } else if (rest >= 0x477FF000u) {
    half = 0x7C00u;  // 65520 and above round to infinity
  } else if (rest < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the value, rounded to multiples of 2^-24, in the low bits of the mantissa.
    half = bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3F000000u;
  } else {
    half = (rest - 0x38000000u + 0xFFFu + (rest >> 13 & 1u)) >> 13;
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

template <typename T>
MOBIZO_INLINE F32 load(const T* p) {
  return each<F32>([=](int i) { return widen(p[i]); });
}
template <typename T>
MOBIZO_INLINE void store(T* p, F32 a) {
  for (int i = 0; i < kLanes; ++i) narrow(a.v[i], p + i);
}

MOBIZO_INLINE void load_transposed(const float* p, int64_t stride, F32 out[4]) {
  for (int j = 0; j < 4; ++j) out[j] = each<F32>([=](int i) { return p[i * stride + j]; });
}
MOBIZO_INLINE U32 load_bits(const uint8_t* bits, int64_t first, int64_t stride) {
  return each<U32>([=](int i) {
    const int64_t bit = first + i * stride;
    uint32_t word;
    std::memcpy(&word, bits + bit / 8, sizeof word);
    return word >> bit % 8;
  });
}

// --- Philox words -----------------------------------------------------------------------------------------------------------
MOBIZO_INLINE Word broadcast_word(uint32_t x) {
  return each<Word>([=](int) { return x; });
}
MOBIZO_INLINE Word first_counters(uint32_t c) {
  return each<Word>([=](int i) { return c + static_cast<uint32_t>(i); });
}
MOBIZO_INLINE Product multiply(Word a, uint32_t constant) {
  return each<Product>([&](int i) { return static_cast<uint64_t>(a.v[i]) * constant; });
}
MOBIZO_INLINE Word high(Product p) {
  return each<Word>([&](int i) { return static_cast<uint32_t>(p.v[i] >> 32); });
}
MOBIZO_INLINE Word low(Product p) {
  return each<Word>([&](int i) { return static_cast<uint32_t>(p.v[i]); });
}
MOBIZO_INLINE Word xor3(Word a, Word b, Word c) {
  return each<Word>([&](int i) { return a.v[i] ^ b.v[i] ^ c.v[i]; });
}
MOBIZO_INLINE U32 pair(Word a, Word b) {
  return each<U32>([&](int i) { return i % 2 ? b.v[i / 2] : a.v[i / 2]; });
}
MOBIZO_INLINE void interleave(F32 x, F32 y, F32& first_half, F32& second_half) {
  first_half = each<F32>([&](int i) { return i % 2 ? y.v[i / 2] : x.v[i / 2]; });
  second_half = each<F32>([&](int i) { return i % 2 ? y.v[kLanes / 2 + i / 2] : x.v[kLanes / 2 + i / 2]; });
}

// --- reductions -------------------------------------------------------------------------------------------------------------
MOBIZO_INLINE float sum_lanes(F32 a) {
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += a.v[i];
  return sum;
}
MOBIZO_INLINE void sum_lanes(float* out, F32 a, F32 b, F32 c, F32 d) {
  out[0] = sum_lanes(a);
  out[1] = sum_lanes(b);
  out[2] = sum_lanes(c);
  out[3] = sum_lanes(d);
}

// --- steps of optimizers ----------------------------------------------------------------------------------------------------
MOBIZO_INLINE F32 operator/(F32 a, F32 b) {
  return each<F32>([&](int i) { return a.v[i] / b.v[i]; });
}
MOBIZO_INLINE Mask operator<(F32 a, F32 b) {
  return each<Mask>([&](int i) { return a.v[i] < b.v[i]; });
}

}  // namespace mobizo::scalar

#include "partial.h"
