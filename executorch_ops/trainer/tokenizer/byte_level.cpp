#include "byte_level.h"

#include <array>

#include "../files/utf8.h"

namespace mobizo::trainer {
namespace {

constexpr uint32_t kFirstStandIn = 256;  // of the bytes that are no printable characters of Latin-1

bool stands_for_itself(uint32_t byte) { return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD); }

struct Alphabet {
  Alphabet() {
    uint32_t next = kFirstStandIn;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t code = stands_for_itself(byte) ? byte : next++;
      append_utf8(code, characters[byte]);
      bytes[code] = static_cast<int16_t>(byte);
    }
  }

  std::array<std::string, 256> characters;
  std::array<int16_t, 512> bytes = [] {
    std::array<int16_t, 512> none{};
    none.fill(-1);
    return none;
  }();
};

const Alphabet& alphabet() {
  static const Alphabet one;
  return one;
}

}  // namespace

void append_byte_level(std::string_view text, std::string& out) {
  const Alphabet& a = alphabet();
  for (const char c : text) out += a.characters[static_cast<uint8_t>(c)];
}

bool append_bytes_of(std::string_view text, std::string& out) {
  const Alphabet& a = alphabet();
  const size_t before = out.size();
  for (size_t at = 0; at < text.size();) {
    const CodePoint code = code_point_at(text, at);
    if (code.value >= a.bytes.size() || a.bytes[code.value] < 0) {
      out.resize(before);
      return false;
    }
    out += static_cast<char>(a.bytes[code.value]);
    at += code.length;
  }
  return true;
}

}  // namespace mobizo::trainer
