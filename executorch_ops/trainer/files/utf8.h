// UTF-8: the shortest form only, and no surrogates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mobizo::trainer {

// How a text, which is not empty, begins.
struct Utf8Start {
  size_t length;  // in bytes, of a code point that begins with the first byte; 0 if none does
  size_t there;   // how many bytes of one there are
};

inline Utf8Start utf8_start(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  const size_t length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  uint8_t least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  uint8_t most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  size_t there = length == 0 ? 0 : 1;
  while (there < length && there < text.size() && byte(there) >= least && byte(there) <= most) {
    ++there;
    least = 0x80, most = 0xBF;
  }
  return {length, there};
}

// The bytes of the code point at the start of `text`, 0 if there is none.
inline size_t utf8_length(std::string_view text) {
  if (text.empty()) return 0;
  const Utf8Start start = utf8_start(text);
  return start.there == start.length ? start.length : 0;
}

// The first byte of `text` at which it is not UTF-8; its size if it is.
inline size_t utf8_valid_bytes(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t length = utf8_length(text.substr(at));
    if (length == 0) break;
    at += length;
  }
  return at;
}

struct CodePoint {
  uint32_t value;
  size_t length;  // in bytes
};

// The code point that begins at byte `at` of UTF-8.
inline CodePoint code_point_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[at + i])); };
  const auto tail = [&](size_t i) { return byte(i) & 0x3F; };
  if (byte(0) < 0x80) return {byte(0), 1};
  if (byte(0) < 0xE0) return {(byte(0) & 0x1F) << 6 | tail(1), 2};
  if (byte(0) < 0xF0) return {(byte(0) & 0x0F) << 12 | tail(1) << 6 | tail(2), 3};
  return {(byte(0) & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4};
}

// The code point that ends before byte `end` of UTF-8, which is not 0.
inline CodePoint code_point_before(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while ((static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return code_point_at(text, begin);
}

constexpr char kReplacementCharacter[] = "\xEF\xBF\xBD";

// Appends `bytes` as UTF-8, with a replacement character for each part that is none: the start of a code point, as far as it
// goes, or a byte that starts none. Returns the bytes that are done: all if `final`, else without a start at the end.
inline size_t append_utf8_lossy(std::string_view bytes, bool final, std::string& out) {
  size_t at = 0;
  while (at < bytes.size()) {
    const size_t valid = utf8_valid_bytes(bytes.substr(at));
    out += bytes.substr(at, valid);
    at += valid;
    if (at == bytes.size()) break;
    const Utf8Start start = utf8_start(bytes.substr(at));
    if (!final && start.length > 0 && at + start.there == bytes.size()) break;
    out += kReplacementCharacter;
    at += start.there > 0 ? start.there : 1;
  }
  return at;
}

inline void append_utf8(uint32_t code, std::string& out) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (code >> shift & 0x3F)); };
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | code >> 6);
    tail(0);
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | code >> 12);
    tail(6), tail(0);
  } else {
    out += static_cast<char>(0xF0 | code >> 18);
    tail(12), tail(6), tail(0);
  }
}

}  // namespace mobizo::trainer
