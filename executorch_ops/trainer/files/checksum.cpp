#include "checksum.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <vector>

#include "crc32.h"
#include "errors.h"

namespace mobizo::trainer {
namespace {

constexpr std::string_view kMagic = "MOBIZOPT";

}  // namespace

uint32_t crc32_of(const File& file, int64_t begin, int64_t size, uint32_t before) {
  std::vector<char> piece(static_cast<size_t>(std::min<int64_t>(size, 1 << 20)));
  while (size > 0) {
    const auto bytes = std::min(static_cast<int64_t>(piece.size()), size);
    file.read(piece.data(), static_cast<size_t>(bytes), begin);
    before = crc32(piece.data(), static_cast<size_t>(bytes), before);
    begin += bytes;
    size -= bytes;
  }
  return before;
}

std::string hex(uint32_t crc) {
  char digits[9];
  std::snprintf(digits, sizeof digits, "%08x", static_cast<unsigned>(crc));
  return digits;
}

uint32_t check_program(const std::string& path) {
  constexpr int64_t kMagicBytes = 8, kTrailerBytes = 12;
  static_assert(kMagic.size() == kMagicBytes);
  const File file(path, O_RDONLY);
  const int64_t size = file.size();
  char trailer[kTrailerBytes] = {};
  if (size >= kTrailerBytes) file.read(trailer, kTrailerBytes, size - kTrailerBytes);
  if (std::string_view(trailer, kMagicBytes) != kMagic)
    fail(path, ": not a training program, or cut short: it does not end with a checksum, as mobizo export writes it");
  uint32_t expected = 0;
  std::memcpy(&expected, trailer + kMagicBytes, sizeof expected);
  const uint32_t got = crc32_of(file, 0, size - static_cast<int64_t>(sizeof expected));
  if (got != expected)
    fail(path, ": the program is damaged: its checksum is ", hex(expected), ", that of its bytes ", hex(got));
  return got;
}

}  // namespace mobizo::trainer
