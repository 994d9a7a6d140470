// Python's random.Random: the Mersenne Twister MT19937, seeded by a number, and what is drawn from it. The same seed gives the
// same batches on both sides.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

namespace mobizo::trainer {

class PythonRandom {
 public:
  // size: of the number, whose sign makes no difference
  explicit PythonRandom(uint64_t size) {
    std::vector<uint32_t> key{static_cast<uint32_t>(size)};
    if (size >> 32 != 0) key.push_back(static_cast<uint32_t>(size >> 32));
    seed_by(key);
  }

  // From 0 to n - 1, n > 0.
  uint64_t below(uint64_t n) {
    int bits = 0;
    while (n >> bits != 0) ++bits;
    uint64_t found = n;
    while (found >= n) found = take_bits(bits);
    return found;
  }

  template <typename T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i-- > 1;) std::swap(items[i], items[below(i + 1)]);
  }

  // `count` different ones of the items, in the order drawn.
  template <typename T>
  std::vector<T> sample(const std::vector<T>& items, size_t count) {
    const size_t n = items.size();
    size_t most = 21;  // items up to which a list of them is cheaper than a set of what is drawn
    if (count > 5) {
      size_t power = 1;
      while (power < 3 * count) power *= 4;
      most += power;
    }
    std::vector<T> drawn;
    if (n <= most) {
      std::vector<T> pool = items;
      for (size_t i = 0; i < count; ++i) {
        const size_t j = below(n - i);
        drawn.push_back(pool[j]);
        pool[j] = pool[n - i - 1];
      }
      return drawn;
    }
    std::set<size_t> taken;
    for (size_t i = 0; i < count; ++i) {
      size_t j = below(n);
      while (!taken.insert(j).second) j = below(n);
      drawn.push_back(items[j]);
    }
    return drawn;
  }

 private:
  static constexpr size_t kWords = 624, kShift = 397;

  void seed_by(const std::vector<uint32_t>& key) {
    words_[0] = 19650218;
    for (uint32_t i = 1; i < kWords; ++i) words_[i] = 1812433253u * (words_[i - 1] ^ words_[i - 1] >> 30) + i;
    size_t i = 1, j = 0;
    const auto next = [&] {
      if (++i >= kWords) words_[0] = words_[kWords - 1], i = 1;
    };
    for (size_t k = std::max(kWords, key.size()); k > 0; --k) {
      words_[i] = (words_[i] ^ (words_[i - 1] ^ words_[i - 1] >> 30) * 1664525u) + key[j] + static_cast<uint32_t>(j);
      next();
      if (++j >= key.size()) j = 0;
    }
    for (size_t k = kWords - 1; k > 0; --k) {
      words_[i] = (words_[i] ^ (words_[i - 1] ^ words_[i - 1] >> 30) * 1566083941u) - static_cast<uint32_t>(i);
      next();
    }
    words_[0] = 0x80000000u;
  }

  uint32_t next_word() {
    if (at_ == kWords) {
      for (size_t i = 0; i < kWords; ++i) {
        const uint32_t y = (words_[i] & 0x80000000u) | (words_[(i + 1) % kWords] & 0x7FFFFFFFu);
        words_[i] = words_[(i + kShift) % kWords] ^ y >> 1 ^ ((y & 1) != 0 ? 0x9908B0DFu : 0);
      }
      at_ = 0;
    }
    uint32_t y = words_[at_++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9D2C5680u;
    y ^= y << 15 & 0xEFC60000u;
    return y ^ y >> 18;
  }

  // Up to 64 bits, the lower ones first.
  uint64_t take_bits(int bits) {
    uint64_t value = 0;
    for (int shift = 0; shift < bits; shift += 32) {
      const int left = bits - shift;
      const uint32_t word = next_word();
      value |= static_cast<uint64_t>(left < 32 ? word >> (32 - left) : word) << shift;
    }
    return value;
  }

  std::array<uint32_t, kWords> words_{};
  size_t at_ = kWords;
};

}  // namespace mobizo::trainer
