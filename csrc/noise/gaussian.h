// Standard normal values by Box-Muller, with polynomials in float32 whose every step is exactly specified: the same bits on
// every machine. Element e takes value e % 4 of counter e / 4.
#pragma once

#include "philox.h"

namespace mobizo::MOBIZO_ISA {

constexpr int kGaussianBlock = 4 * kPhiloxUnroll * kCounters;  // elements that one call of gaussian() makes
constexpr int kGaussianVecs = kGaussianBlock / kLanes;

// sqrt(-2 ln u) for u = k / 2^24, k = the odd integer 2 * (a >> 9) + 1. The polynomial is that of ln(1 + f) / f on the mantissa
// 1 + f in [sqrt(1/2), sqrt(2)); every constant carries the factor -2, which a power of two makes exact.
MOBIZO_INLINE F32 radius(U32 a) {
  constexpr uint32_t kSqrtHalf = 0x3F3504F3u;  // bits of sqrt(1/2)
  const U32 k = shift_right<8>(a) | broadcast(1u);
  const U32 offset = as_bits(signed_to_float(k)) - broadcast(kSqrtHalf + (24u << 23));
  const F32 exponent = signed_to_float(shift_right_signed<23>(offset));
  const F32 f = as_float((offset & broadcast(0x007FFFFFu)) + broadcast(kSqrtHalf)) - broadcast(1.0f);
  F32 p = fma(f, broadcast(-2.0f * 0.08959803730249405f), broadcast(-2.0f * -0.14482136070728302f));
  p = fma(p, f, broadcast(-2.0f * 0.14917394518852234f));
  p = fma(p, f, broadcast(-2.0f * -0.1654374599456787f));
  p = fma(p, f, broadcast(-2.0f * 0.19958415627479553f));
  p = fma(p, f, broadcast(-2.0f * -0.25002944469451904f));
  p = fma(p, f, broadcast(-2.0f * 0.3333415985107422f));
  p = fma(p, f, broadcast(-2.0f * -0.4999997913837433f));
  p = fma(p, f, broadcast(-2.0f * 1.0f));
  p = p * f;
  return sqrt(fma(exponent, broadcast(-2.0f * 0.693147182464599609375f), p));
}

// Cosine and sine of 2 pi b / 2^32: a polynomial in the nearest eighth of a turn's remainder, then the quadrant by swap and
// signs. Two top bits of t = b + 2^29 are the quadrant.
MOBIZO_INLINE void cos_sin(U32 b, F32& cosine, F32& sine) {
  const U32 t = b + broadcast(0x20000000u);
  const U32 remainder = (t & broadcast(0x3FFFFFFFu)) - broadcast(0x20000000u);
  const F32 x = signed_to_float(remainder) * broadcast(1.862645149230957e-09f);
  const F32 y = x * x;
  F32 s = fma(y, broadcast(-3.595450834836811e-05f), broadcast(0.002490007085725665f));
  s = fma(s, y, broadcast(-0.08074543625116348f));
  s = fma(s, y, broadcast(0.7853981852531433f));
  s = s * x;
  F32 c = fma(y, broadcast(-0.0003188805130776018f), broadcast(0.015849914401769638f));
  c = fma(c, y, broadcast(-0.3084242641925812f));
  c = fma(c, y, broadcast(1.0f));
  const Mask odd_quadrant = test(t, broadcast(0x40000000u));
  sine = flip_sign(select(odd_quadrant, c, s), t);
  cosine = flip_sign(select(odd_quadrant, s, c), t + broadcast(0x40000000u));
}

// Elements e .. e + kGaussianBlock - 1; e is a multiple of kGaussianBlock.
MOBIZO_INLINE void gaussian(const NoiseStream& s, uint64_t e, F32 z[kGaussianVecs]) {
  U32 even[kPhiloxUnroll], odd[kPhiloxUnroll];
  philox<kPhiloxUnroll>(s, e / 4, even, odd);
#pragma GCC unroll 4
  for (int i = 0; i < kPhiloxUnroll; ++i) {
    const F32 r = radius(even[i]);
    F32 cosine, sine;
    cos_sin(odd[i], cosine, sine);
    interleave(r * cosine, r * sine, z[2 * i], z[2 * i + 1]);
  }
}

}  // namespace mobizo::MOBIZO_ISA
