// What the kernels must compute, one value at a time, straight from the noise contract and from the formulas. Shares no code
// with csrc but the names of the types and distributions.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "../../csrc/kernels/kernels.h"

namespace mobizo::reference {

// Philox4x32-10 (Salmon et al., SC'11): the four words of one counter.
inline std::array<uint32_t, 4> philox(uint64_t seed, uint64_t stream, uint64_t counter) {
  std::array<uint32_t, 4> w = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                               static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53} * w[0], right = uint64_t{0xCD9E8D57} * w[2];
    w = {static_cast<uint32_t>(right >> 32) ^ w[1] ^ key0, static_cast<uint32_t>(right),
         static_cast<uint32_t>(left >> 32) ^ w[3] ^ key1, static_cast<uint32_t>(left)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return w;
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Box-Muller: sqrt(-2 ln u) for u = k / 2^24.
inline float radius(uint32_t a) {
  const int32_t i = static_cast<int32_t>(to_bits(static_cast<float>((a >> 9) * 2 + 1)));
  const int32_t exponent = (i - 0x3F3504F3) >> 23;
  const float f = from_bits(static_cast<uint32_t>(i) - (static_cast<uint32_t>(exponent) << 23)) - 1.0f;
  float p = std::fma(f, 0.08959803730249405f, -0.14482136070728302f);
  for (const float c : {0.14917394518852234f, -0.1654374599456787f, 0.19958415627479553f, -0.25002944469451904f,
                        0.3333415985107422f, -0.4999997913837433f, 1.0f})
    p = std::fma(p, f, c);
  p *= f;
  return std::sqrt(-2.0f * std::fma(static_cast<float>(exponent - 24), 0.693147182464599609375f, p));
}

// Cosine and sine of b / 2^32 turns.
inline std::pair<float, float> cos_sin(uint32_t b) {
  const uint32_t quadrant = (b + 0x20000000u) >> 30;
  const float x = static_cast<float>(static_cast<int32_t>(b - (quadrant << 30))) * 1.862645149230957e-09f;
  const float y = x * x;
  float s = std::fma(y, -3.595450834836811e-05f, 0.002490007085725665f);
  s = std::fma(s, y, -0.08074543625116348f);
  s = std::fma(s, y, 0.7853981852531433f) * x;
  float c = std::fma(y, -0.0003188805130776018f, 0.015849914401769638f);
  c = std::fma(c, y, -0.3084242641925812f);
  c = std::fma(c, y, 1.0f);
  if (quadrant & 1) std::swap(s, c);
  return {(quadrant + 1) & 2 ? -c : c, quadrant & 2 ? -s : s};
}

// z(seed, stream, e) of directions that know no rows and columns.
inline float noise(Distribution distribution, int64_t seed, int64_t stream, int64_t e) {
  const bool gaussian = distribution == Distribution::kGaussian;
  const auto element = static_cast<uint64_t>(e), per_counter = uint64_t{gaussian ? 4u : 128u};
  const std::array<uint32_t, 4> w = philox(static_cast<uint64_t>(seed), static_cast<uint64_t>(stream), element / per_counter);
  const uint64_t value = element % per_counter;
  if (!gaussian) return w[value / 32] >> value % 32 & 1 ? -1.0f : 1.0f;
  const auto [cosine, sine] = cos_sin(w[value / 2 * 2 + 1]);
  return radius(w[value / 2 * 2]) * (value % 2 ? sine : cosine);
}

// Element e of a direction for a matrix: of kOuter u v^T, signs of which rows come first and then columns.
inline float direction(Distribution distribution, int64_t seed, int64_t stream, int64_t rows, int64_t columns, int64_t e) {
  if (distribution != Distribution::kOuter) return noise(distribution, seed, stream, e);
  const auto sign = [&](int64_t i) { return noise(Distribution::kRademacher, seed, stream, i); };
  return sign(e / columns) * sign(rows + e % columns);
}

// Exponent and fraction bits of a storage type.
struct Format {
  int exponent, fraction;
  int bias() const { return (1 << (exponent - 1)) - 1; }
  uint32_t infinity() const { return ((1u << exponent) - 1) << fraction; }
};
inline Format format(DType dtype) {
  return dtype == DType::kFloat32 ? Format{8, 23} : dtype == DType::kBFloat16 ? Format{8, 7} : Format{5, 10};
}

// x rounded to nearest even, as a bit pattern. Every NaN becomes one and the same.
inline uint32_t narrow(DType dtype, float x) {
  const Format f = format(dtype);
  const uint32_t sign = std::signbit(x) ? 1u << (f.exponent + f.fraction) : 0u;
  if (std::isnan(x)) return f.infinity() | 1u << (f.fraction - 1);
  if (std::isinf(x)) return sign | f.infinity();
  const double magnitude = std::fabs(static_cast<double>(x));
  const int lowest = 1 - f.bias(), exponent = magnitude == 0.0 ? lowest : std::max(std::ilogb(magnitude), lowest);
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, f.fraction - exponent)));
  return sign | std::min((static_cast<uint32_t>(exponent - lowest) << f.fraction) + units, f.infinity());
}

inline float widen(DType dtype, uint32_t bits) {
  const Format f = format(dtype);
  const auto exponent = static_cast<int>(bits >> f.fraction & ((1u << f.exponent) - 1));
  const uint32_t fraction = bits & ((1u << f.fraction) - 1), unit = 1u << f.fraction;
  const bool negative = (bits >> (f.exponent + f.fraction) & 1u) != 0, normal = exponent > 0;
  double magnitude = std::ldexp(fraction + (normal ? unit : 0u), (normal ? exponent : 1) - f.bias() - f.fraction);
  if (exponent == (1 << f.exponent) - 1) magnitude = fraction ? std::nan("") : HUGE_VAL;
  return static_cast<float>(negative ? -magnitude : magnitude);
}

// decay * w + sum_i coeffs[i] * z_i, before it is rounded to storage.
inline float perturbed(const PerturbArgs& args, float w, int64_t e) {
  float sum = args.decay == 1.0f ? w : args.decay * w;
  for (int64_t i = 0; i < args.count; ++i)
    sum = std::fma(args.coeffs[i],
                   direction(args.distribution, args.seeds[i], args.stream, args.numel / args.columns, args.columns, e), sum);
  return sum;
}

// Element e of a parameter and of its state.
struct Element {
  float param, first, second;
};

// momentum = beta * momentum + g, param = decay * param + momentum; `second` is not in use.
inline Element momentum_step(const ZoMomentumArgs& args, Element old, int64_t e) {
  PerturbArgs sum = args;
  sum.decay = args.beta;
  const float momentum = perturbed(sum, old.first, e);
  return {args.decay * old.param + momentum, momentum, old.second};
}

// g by itself.
inline float gradient(const PerturbArgs& args, int64_t e) {
  PerturbArgs sum = args;
  sum.decay = 1.0f;
  return perturbed(sum, 0.0f, e);
}

// Adam (Kingma and Ba, arXiv 1412.6980, end of section 2).
inline Element adam_step(const ZoAdamArgs& args, Element old, int64_t e) {
  const float g = gradient(args, e);
  const float m = std::fma(args.beta1, old.first, args.one_minus_beta1 * g);
  const float scaled = args.one_minus_beta2 * g;
  const float v = std::fma(args.beta2, old.second, scaled * g);
  return {std::fma(-args.lr, m / (std::sqrt(v) + args.eps), args.decay * old.param), m, v};
}

inline Element sign_step(const ZoSignArgs& args, Element old, int64_t e) {
  const float g = gradient(args, e), sign = g > 0.0f ? 1.0f : g < 0.0f ? -1.0f : 0.0f;
  return {args.decay * old.param - args.lr * sign, old.first, old.second};
}

// One value of mp_lora in double, and the same sums over absolute values, which bound the rounding errors.
struct Bounded {
  double value, magnitude;
};

// mp_lora on float32 values: base and x by (row, column), lora_b by (column, rank index). Result [rows, out_features].
template <typename Base, typename X, typename LoraB>
std::vector<Bounded> mp_lora(const MpLoraArgs& args, Base base, X x, LoraB lora_b) {
  const int64_t rank = args.rank, group_rows = args.rows / args.groups;
  std::vector<Bounded> result(static_cast<size_t>(args.rows * args.out_features));
  std::vector<Bounded> shrunk(static_cast<size_t>(group_rows * rank)), perturbed(static_cast<size_t>(rank));
  for (int64_t group = 0; group < args.groups; ++group) {
    for (int64_t row = 0; row < group_rows; ++row) {
      for (int64_t j = 0; j < rank; ++j) {
        Bounded sum{};
        for (int64_t k = 0; k < args.in_features; ++k) {
          const double product = double{x(group * group_rows + row, k)} * args.lora_a[j * args.in_features + k];
          sum.value += product;
          sum.magnitude += std::fabs(product);
        }
        shrunk[static_cast<size_t>(row * rank + j)] = sum;
      }
    }
    for (int64_t n = 0; n < args.out_features; ++n) {
      for (int64_t j = 0; j < rank; ++j) {
        const double b = lora_b(n, j);
        const double z = direction(args.distribution, args.seeds[group], args.stream, args.out_features, rank, n * rank + j);
        perturbed[static_cast<size_t>(j)] = {b + args.coeffs[group] * z, std::fabs(b) + std::fabs(args.coeffs[group] * z)};
      }
      for (int64_t row = 0; row < group_rows; ++row) {
        Bounded sum{};
        for (int64_t j = 0; j < rank; ++j) {
          const Bounded &u = shrunk[static_cast<size_t>(row * rank + j)], &b = perturbed[static_cast<size_t>(j)];
          sum.value += u.value * b.value;
          sum.magnitude += u.magnitude * b.magnitude;
        }
        const double old = base(group * group_rows + row, n);
        result[static_cast<size_t>((group * group_rows + row) * args.out_features + n)] = {
            old + args.scaling * sum.value, std::fabs(old) + std::fabs(args.scaling) * sum.magnitude};
      }
    }
  }
  return result;
}

// What float32 sums in any order may be off by (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1):
// in_features roundings in x A^T, rank in the second sum, 5 around them; then one rounding into storage, of a subnormal
// perhaps.
inline double mp_lora_error(const MpLoraArgs& args, const Bounded& expected) {
  const double roundings = static_cast<double>(args.in_features + args.rank + 5) * 0x1p-24;
  const double error = roundings / (1.0 - roundings) * expected.magnitude;
  if (args.dtype == DType::kFloat32) return error;
  const Format f = format(args.dtype);
  return error + std::ldexp(std::fabs(expected.value) + error, -f.fraction - 1) + std::ldexp(1.0, -f.bias() - f.fraction);
}

}  // namespace mobizo::reference
