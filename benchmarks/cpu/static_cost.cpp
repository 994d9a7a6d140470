// The inner loops of the noise, each in a function of its own, for static_cost.py to find in the assembly. Those of mp_lora are
// taken from its kernel as it is.
#include "../../csrc/noise/gaussian.h"
#include "../../csrc/noise/rademacher.h"

namespace mobizo::MOBIZO_ISA {

extern "C" {

extern const int32_t gaussian_elements, rademacher_words_elements, rademacher_signs_elements;
const int32_t gaussian_elements = kGaussianBlock;  // that one turn of each loop makes
const int32_t rademacher_words_elements = kRademacherBlock;
const int32_t rademacher_signs_elements = 4 * kLanes;

void gaussian_loop(const NoiseStream& s, float* out, int64_t count) {
  for (int64_t e = 0; e < count; e += kGaussianBlock) {
    F32 z[kGaussianVecs];
    gaussian(s, static_cast<uint64_t>(e), z);
#pragma GCC unroll 8
    for (int v = 0; v < kGaussianVecs; ++v) store(out + e + v * kLanes, z[v]);
  }
}

void rademacher_words_loop(const NoiseStream& s, float* words, int64_t count) {
  for (int64_t e = 0; e < count; e += kRademacherBlock) rademacher(s, static_cast<uint64_t>(e), words + e / 32);
}

void rademacher_signs_loop(const uint8_t* bits, float* out) {
  const F32 one = broadcast(1.0f);
#pragma GCC unroll 4
  for (int v = 0; v < kRademacherVecs; ++v) store(out + v * kLanes, flip_signs(one, bits + v * (kLanes / 8)));
}

}  // extern "C"

}  // namespace mobizo::MOBIZO_ISA
