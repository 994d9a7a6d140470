// The CRC-32 of zlib, PNG and Ethernet.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace mobizo::trainer {

// Table k takes a byte that is followed by k others: eight bytes at a time, a program of gigabytes is read as fast as its
// flash.
using Crc32Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Crc32Tables make_crc32_tables() {
  Crc32Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
    tables[0][byte] = value;
  }
  for (size_t k = 1; k < tables.size(); ++k)
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = before >> 8 ^ tables[0][before & 0xFF];
    }
  return tables;
}
inline constexpr Crc32Tables kCrc32Tables = make_crc32_tables();

// The CRC of `size` bytes; `before` is the CRC of what comes before them.
inline uint32_t crc32(const void* data, size_t size, uint32_t before = 0) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as they lie in memory");
  const Crc32Tables& t = kCrc32Tables;
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint32_t value = ~before;
  for (; size >= 8; size -= 8, bytes += 8) {
    uint32_t low, high;
    std::memcpy(&low, bytes, 4);
    std::memcpy(&high, bytes + 4, 4);
    low ^= value;
    value = t[7][low & 0xFF] ^ t[6][low >> 8 & 0xFF] ^ t[5][low >> 16 & 0xFF] ^ t[4][low >> 24] ^ t[3][high & 0xFF] ^
            t[2][high >> 8 & 0xFF] ^ t[1][high >> 16 & 0xFF] ^ t[0][high >> 24];
  }
  for (; size > 0; --size) value = value >> 8 ^ t[0][(value ^ *bytes++) & 0xFF];
  return ~value;
}

}  // namespace mobizo::trainer
