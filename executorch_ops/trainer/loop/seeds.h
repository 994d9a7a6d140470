// The seeds of a run: one 64-bit number gives every direction that will ever be tried.
#pragma once

#include <cstdint>
#include <vector>

namespace mobizo::trainer {

// Output number n, from 0, of SplitMix64 (Steele et al., OOPSLA 2014) started at run_seed.
constexpr int64_t query_seed(int64_t run_seed, int64_t n) {
  uint64_t z = static_cast<uint64_t>(run_seed) + (static_cast<uint64_t>(n) + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return static_cast<int64_t>(z ^ z >> 31);
}

// The seeds of the queries of one step, [queries].
inline std::vector<int64_t> query_seeds(int64_t run_seed, int64_t step, int64_t queries) {
  std::vector<int64_t> seeds;
  for (int64_t k = 0; k < queries; ++k) seeds.push_back(query_seed(run_seed, step * queries + k));
  return seeds;
}

}  // namespace mobizo::trainer
