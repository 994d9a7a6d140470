// Words of the noise contract without end, on stdout, for a battery of tests that reads a pipe: docs/noise.md.
//
//   words ORDER RUN_SEED [COUNT]
//
// ORDER says which words follow each other, for what a run of training could put side by side:
//   elements   the counters of one seed and stream
//   streams    counter 0 of streams 0, 1, 2, ... under one seed
//   seeds      counter 0 of seeds 0, 1, 2, ... in one stream, which are the run seeds that people choose
//   queries    counter 0 of the seeds of queries 0, 1, 2, ... in one stream
//   outer      the signs of 128 elements (i, i) of an outer-product direction for query after query
// COUNT is the number of groups of four words; without it there is no end.
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

using Words = std::array<uint32_t, 4>;

Words philox(uint64_t seed, uint64_t stream, uint64_t counter) {
  uint32_t c0 = counter, c1 = counter >> 32, c2 = stream, c3 = stream >> 32;
  uint32_t k0 = seed, k1 = seed >> 32;
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint64_t left = 0xD2511F53ull * c0, right = 0xCD9E8D57ull * c2;
    c0 = static_cast<uint32_t>(right >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(right);
    c2 = static_cast<uint32_t>(left >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(left);
  }
  return {c0, c1, c2, c3};
}

// Output `n` of SplitMix64 started at `state`.
uint64_t splitmix64(uint64_t state, uint64_t n) {
  uint64_t z = state + (n + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// Signs of (i, i), i < 128, of a matrix of 128 rows: bits 0 to 127 are u, bits 128 to 255 are v.
Words outer_signs(uint64_t seed, uint64_t stream) {
  const Words u = philox(seed, stream, 0), v = philox(seed, stream, 1);
  return {u[0] ^ v[0], u[1] ^ v[1], u[2] ^ v[2], u[3] ^ v[3]};
}

constexpr uint64_t kStream = 0x5EED;

template <typename Group>
int write_groups(uint64_t count, Group group) {
  std::vector<Words> block(1 << 14);
  for (uint64_t n = 0; n < count;) {
    size_t size = 0;
    for (; size < block.size() && n < count; ++size, ++n) block[size] = group(n);
    if (std::fwrite(block.data(), sizeof(Words), size, stdout) != size) return 0;  // whoever reads has enough
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr, "words: expected ORDER RUN_SEED [COUNT], got %d arguments\n", argc - 1);
    return 2;
  }
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  const uint64_t count = argc == 4 ? std::strtoull(argv[3], nullptr, 10) : UINT64_MAX;
  const auto is = [&](const char* order) { return std::strcmp(argv[1], order) == 0; };
  if (is("elements")) return write_groups(count, [=](uint64_t n) { return philox(seed, kStream, n); });
  if (is("streams")) return write_groups(count, [=](uint64_t n) { return philox(seed, n, 0); });
  if (is("seeds")) return write_groups(count, [=](uint64_t n) { return philox(seed + n, kStream, 0); });
  if (is("queries")) return write_groups(count, [=](uint64_t n) { return philox(splitmix64(seed, n), kStream, 0); });
  if (is("outer")) return write_groups(count, [=](uint64_t n) { return outer_signs(splitmix64(seed, n), kStream); });
  std::fprintf(stderr, "words: expected elements, streams, seeds, queries or outer, got %s\n", argv[1]);
  return 2;
}
