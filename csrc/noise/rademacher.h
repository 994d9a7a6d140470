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

}  // namespace mobizo::MOBIZO_ISA
