// The CRC-32 of zlib, PNG and Ethernet.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace mobizo::trainer {

constexpr std::array<uint32_t, 256> make_crc32_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
    table[byte] = value;
  }
  return table;
}
inline constexpr std::array<uint32_t, 256> kCrc32Table = make_crc32_table();

// Of `size` bytes; `before` is the CRC of what comes before them.
inline uint32_t crc32(const void* data, size_t size, uint32_t before = 0) {
  const uint8_t* bytes = static_cast<const uint8_t*>(data);
  uint32_t value = ~before;
  for (size_t i = 0; i < size; ++i) value = value >> 8 ^ kCrc32Table[(value ^ bytes[i]) & 0xFF];
  return ~value;
}

}  // namespace mobizo::trainer
