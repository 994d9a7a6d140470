// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11), several counters at a time.
//
// key = the 64-bit seed; counter = (64-bit block number, 64-bit stream). Successive blocks differ in the low word of the block
// number alone, which makes half of the first two rounds the same for all of them: that half is done once, on scalars.
#pragma once

#include "../simd/vec.h"

namespace mobizo::MOBIZO_ISA {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

struct NoiseStream {
  uint32_t key0[kPhiloxRounds], key1[kPhiloxRounds];
  uint32_t stream_low, stream_high;
};

MOBIZO_INLINE NoiseStream noise_stream(uint64_t seed, uint64_t stream) {
  NoiseStream s;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    s.key0[round] = key0;
    s.key1[round] = key1;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  s.stream_low = static_cast<uint32_t>(stream);
  s.stream_high = static_cast<uint32_t>(stream >> 32);
  return s;
}

// The words of n * kCounters counters from c on, a multiple of n * kCounters, so that one high word serves them all. even[i]
// holds words 0 and 2, odd[i] words 1 and 3 of the i-th kCounters of them. A larger n hides the latency of the multiply.
template <int n>
MOBIZO_INLINE void philox(const NoiseStream& s, uint64_t c, U32 even[n], U32 odd[n]) {
  // Rounds 1 and 2 for the words that do not depend on the low word of the counter.
  const uint64_t stream_product = static_cast<uint64_t>(s.stream_low) * kPhiloxMultiplier1;
  const uint32_t first0 = static_cast<uint32_t>(stream_product >> 32) ^ static_cast<uint32_t>(c >> 32) ^ s.key0[0];
  const uint64_t first_product = static_cast<uint64_t>(first0) * kPhiloxMultiplier0;
  const Word first2_key = broadcast_word(s.stream_high ^ s.key1[0]);
  const Word second0_key = broadcast_word(static_cast<uint32_t>(stream_product) ^ s.key0[1]);
  const Word second2_key = broadcast_word(static_cast<uint32_t>(first_product >> 32) ^ s.key1[1]);
  const Word none = broadcast_word(0u);

  Word w0[n], w1[n], w2[n], w3[n];
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) {
    const auto counter_product = multiply(first_counters(static_cast<uint32_t>(c) + i * kCounters), kPhiloxMultiplier0);
    const auto product = multiply(xor3(high(counter_product), first2_key, none), kPhiloxMultiplier1);
    w0[i] = xor3(high(product), second0_key, none);
    w1[i] = low(product);
    w2[i] = xor3(low(counter_product), second2_key, none);
    w3[i] = broadcast_word(static_cast<uint32_t>(first_product));
  }
#pragma GCC unroll 8
  for (int round = 2; round < kPhiloxRounds; ++round) {
    const Word key0 = broadcast_word(s.key0[round]), key1 = broadcast_word(s.key1[round]);
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) {
      const auto product0 = multiply(w0[i], kPhiloxMultiplier0), product1 = multiply(w2[i], kPhiloxMultiplier1);
      w0[i] = xor3(high(product1), w1[i], key0);
      w1[i] = low(product1);
      w2[i] = xor3(high(product0), w3[i], key1);
      w3[i] = low(product0);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) {
    even[i] = pair(w0[i], w2[i]);
    odd[i] = pair(w1[i], w3[i]);
  }
}

}  // namespace mobizo::MOBIZO_ISA
