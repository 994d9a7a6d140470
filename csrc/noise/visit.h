// Noise of a range of elements, a vector at a time.
//
// visit_noise(distribution, stream, first, count, visit) calls visit(i, z) for whole vectors and visit(i, z, n) for the vector
// cut off by the end of the range, where z holds elements first + i, first + i + 1, ... Written as one variadic lambda,
//   [&](int64_t i, F32 z, auto... n) { store(out + i, z, n...); }
// it serves both. `first` is a multiple of kLanes.
#pragma once

#include "distribution.h"
#include "gaussian.h"
#include "rademacher.h"

namespace mobizo::MOBIZO_ISA {

// The vectors of one block of `vecs` vectors that starts at element `block`, clipped to the range [first, last).
template <typename Z, typename Visit>
MOBIZO_INLINE void visit_block(int vecs, int64_t block, int64_t first, int64_t last, Z z, Visit visit) {
  for (int v = 0; v < vecs; ++v) {
    const int64_t e = block + v * kLanes;
    if (e < first) continue;
    if (e + kLanes <= last) {
      visit(e - first, z(v));
    } else if (e < last) {
      visit(e - first, z(v), static_cast<int>(last - e));
    }
  }
}

template <typename Visit>
MOBIZO_INLINE void visit_gaussian(const NoiseStream& s, int64_t first, int64_t count, Visit visit) {
  const int64_t last = first + count;
  for (int64_t block = first - first % kGaussianBlock; block < last; block += kGaussianBlock) {
    F32 z[kGaussianVecs];
    gaussian(s, static_cast<uint64_t>(block), z);
    if (block >= first && block + kGaussianBlock <= last) {
#pragma GCC unroll 8
      for (int v = 0; v < kGaussianVecs; ++v) visit(block - first + v * kLanes, z[v]);
    } else {
      visit_block(kGaussianVecs, block, first, last, [&](int v) { return z[v]; }, visit);
    }
  }
}

// visit(i, magnitude * z): a sign needs no multiply.
template <typename Visit>
MOBIZO_INLINE void visit_rademacher(const NoiseStream& s, F32 magnitude, int64_t first, int64_t count, Visit visit) {
  const int64_t last = first + count;
  for (int64_t block = first - first % kRademacherBlock; block < last; block += kRademacherBlock) {
    float words[kRademacherBlock / 32];
    rademacher(s, static_cast<uint64_t>(block), words);
    const uint8_t* bits = reinterpret_cast<const uint8_t*>(words);
    const auto z = [&](int v) { return flip_signs(magnitude, bits + v * (kLanes / 8)); };
    if (block >= first && block + kRademacherBlock <= last) {
#pragma GCC unroll 4
      for (int v = 0; v < kRademacherVecs; ++v) visit(block - first + v * kLanes, z(v));
    } else {
      visit_block(kRademacherVecs, block, first, last, z, visit);
    }
  }
}

template <typename Visit>
MOBIZO_INLINE void visit_noise(Distribution d, const NoiseStream& s, int64_t first, int64_t count, Visit visit) {
  if (d == Distribution::kGaussian) {
    visit_gaussian(s, first, count, visit);
  } else {
    visit_rademacher(s, broadcast(1.0f), first, count, visit);
  }
}

}  // namespace mobizo::MOBIZO_ISA
