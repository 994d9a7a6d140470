// The byte-level alphabet of GPT-2: a printable character for each byte. That of 'a' is 'a', that of a space is U+0120.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mobizo::trainer {

// The characters of all bytes of `text`.
void append_byte_level(std::string_view text, std::string& out);
inline std::string byte_level(std::string_view text) {
  std::string out;
  append_byte_level(text, out);
  return out;
}

// Appends the bytes of which `text`, in UTF-8, has the characters; false, and nothing appended, if it has another character.
bool append_bytes_of(std::string_view text, std::string& out);

}  // namespace mobizo::trainer
