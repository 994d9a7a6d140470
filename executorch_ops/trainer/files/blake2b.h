// BLAKE2b (RFC 7693) with a digest of 16 bytes: the fingerprints of docs/formats.md and, with a key, the splits of texts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace mobizo::trainer {

class Blake2b {
 public:
  // key: at most 64 bytes.
  explicit Blake2b(std::string_view key = {}) : state_(kInitial) {
    state_[0] ^= 0x01010000 ^ key.size() << 8 ^ kDigestBytes;
    if (key.empty()) return;
    std::memcpy(block_.data(), key.data(), key.size());
    filled_ = kBlockBytes;
  }

  void update(const void* data, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    while (size > 0) {
      if (filled_ == kBlockBytes) compress(false);  // not earlier: the last block is another
      const size_t part = size < kBlockBytes - filled_ ? size : kBlockBytes - filled_;
      std::memcpy(&block_[filled_], bytes, part);
      filled_ += part;
      bytes += part;
      size -= part;
    }
  }

  // Ends it: 16 bytes.
  std::array<uint8_t, 16> bytes() {
    if (filled_ < kBlockBytes) std::memset(&block_[filled_], 0, kBlockBytes - filled_);
    compress(true);
    std::array<uint8_t, kDigestBytes> digest{};
    for (size_t i = 0; i < kDigestBytes; ++i) digest[i] = static_cast<uint8_t>(state_[i / 8] >> 8 * (i % 8));
    return digest;
  }

  // Ends it: 32 hexadecimal digits.
  std::string hex() {
    std::string text;
    for (const uint8_t byte : bytes()) {
      text += "0123456789abcdef"[byte >> 4];
      text += "0123456789abcdef"[byte & 15];
    }
    return text;
  }

 private:
  static constexpr size_t kDigestBytes = 16, kBlockBytes = 128;
  static constexpr std::array<uint64_t, 8> kInitial{0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B,
                                                    0xA54FF53A5F1D36F1, 0x510E527FADE682D1, 0x9B05688C2B3E6C1F,
                                                    0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179};
  static constexpr uint8_t kOrder[10][16] = {
      {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
      {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
      {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
      {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
      {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

  static uint64_t rotate(uint64_t value, int bits) { return value >> bits | value << (64 - bits); }

  void compress(bool last) {
    bytes_ += filled_;
    filled_ = 0;
    std::array<uint64_t, 16> m{}, v{};
    std::memcpy(m.data(), block_.data(), kBlockBytes);  // little endian, as file.h has it
    for (size_t i = 0; i < 8; ++i) v[i] = state_[i], v[i + 8] = kInitial[i];
    v[12] ^= bytes_;
    if (last) v[14] = ~v[14];
    const auto mix = [&](size_t a, size_t b, size_t c, size_t d, uint64_t x, uint64_t y) {
      v[a] += v[b] + x, v[d] = rotate(v[d] ^ v[a], 32);
      v[c] += v[d], v[b] = rotate(v[b] ^ v[c], 24);
      v[a] += v[b] + y, v[d] = rotate(v[d] ^ v[a], 16);
      v[c] += v[d], v[b] = rotate(v[b] ^ v[c], 63);
    };
    for (size_t round = 0; round < 12; ++round) {
      const uint8_t* s = kOrder[round % 10];
      for (size_t i = 0; i < 4; ++i) mix(i, i + 4, i + 8, i + 12, m[s[2 * i]], m[s[2 * i + 1]]);
      for (size_t i = 0; i < 4; ++i)
        mix(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12, m[s[2 * i + 8]], m[s[2 * i + 9]]);
    }
    for (size_t i = 0; i < 8; ++i) state_[i] ^= v[i] ^ v[i + 8];
  }

  std::array<uint64_t, 8> state_;
  std::array<uint8_t, kBlockBytes> block_{};
  size_t filled_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace mobizo::trainer
