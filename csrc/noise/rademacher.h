// Signs: element e is bit e % 128 of the four words of counter e / 128, and stands for 1 - 2 * bit. Laid out in memory the
// words are one bit stream, element e at bit e.
#pragma once

#include "philox.h"

namespace mobizo::MOBIZO_ISA {

constexpr int kRademacherBlock = 128 * kCounters;  // elements that one call of rademacher() makes
constexpr int kRademacherVecs = kRademacherBlock / kLanes;

// The bits of elements e .. e + kRademacherBlock - 1; e is a multiple of kRademacherBlock. The words travel as float32 bit
// patterns.
MOBIZO_INLINE void rademacher(const NoiseStream& s, uint64_t e, float words[kRademacherBlock / 32]) {
  U32 even[1], odd[1];
  philox<1>(s, e / 128, even, odd);
  F32 first_half, second_half;
  interleave(as_float(even[0]), as_float(odd[0]), first_half, second_half);
  store(words, first_half);
  store(words + kLanes, second_half);
}

// Room for the bits of any `count` elements, in bytes, and for load_bits to read past the last of them.
constexpr int64_t rademacher_bytes(int64_t count) { return (count + 2 * kRademacherBlock) / 8 + 4; }

// The bit stream of elements first .. first + count - 1 into `bits`; element first + i is bit number result + i.
MOBIZO_INLINE int64_t rademacher_bits(const NoiseStream& s, int64_t first, int64_t count, uint8_t* bits) {
  const int64_t offset = first % kRademacherBlock;
  for (int64_t block = 0; block < offset + count; block += kRademacherBlock) {
    float words[kRademacherBlock / 32];
    rademacher(s, static_cast<uint64_t>(first - offset + block), words);
    std::memcpy(bits + block / 8, words, sizeof words);
  }
  return offset;
}

// v with the sign of lane i flipped where bit `first` + i of the bit stream is set, for any `first`; reads four bytes.
MOBIZO_INLINE F32 flip_signs_from(F32 v, const uint8_t* bits, int64_t first) {
  const auto start = static_cast<uint64_t>(first);  // unsigned, so that the division is a shift
  uint32_t word;
  std::memcpy(&word, bits + start / 8, sizeof word);
  word >>= start % 8;
  uint8_t bytes[sizeof word];
  std::memcpy(bytes, &word, sizeof word);
  return flip_signs(v, bytes);
}

// out[i] = value with the sign of bit `first` + i, for whole vectors that cover `count` values.
MOBIZO_INLINE void store_signs(float* out, F32 value, const uint8_t* bits, int64_t first, int64_t count) {
  const auto start = static_cast<uint64_t>(first);
  bits += start / 8;
  for (int64_t i = 0; i < count; i += kLanes, bits += kLanes / 8)
    store(out + i, flip_signs_from(value, bits, static_cast<int64_t>(start % 8)));
}

}  // namespace mobizo::MOBIZO_ISA
