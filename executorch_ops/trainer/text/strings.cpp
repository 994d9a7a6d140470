#include "strings.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "../files/json_numbers.h"
#include "../files/utf8.h"

namespace mobizo::trainer {
namespace {

struct Range {
  uint32_t first, last;
};

// Cc, Cf, Zs, Zl and Zp of Unicode 16.
constexpr Range kInvisible[] = {
    {0x0000, 0x0020},   {0x007F, 0x00A0},   {0x00AD, 0x00AD},   {0x0600, 0x0605},   {0x061C, 0x061C},
    {0x06DD, 0x06DD},   {0x070F, 0x070F},   {0x0890, 0x0891},   {0x08E2, 0x08E2},   {0x1680, 0x1680},
    {0x180E, 0x180E},   {0x2000, 0x200F},   {0x2028, 0x202F},   {0x205F, 0x2064},   {0x2066, 0x206F},
    {0x3000, 0x3000},   {0xFEFF, 0xFEFF},   {0xFFF9, 0xFFFB},   {0x110BD, 0x110BD}, {0x110CD, 0x110CD},
    {0x13430, 0x1343F}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0001, 0xE0001}, {0xE0020, 0xE007F}};

// Cs, Co and what is no character.
bool has_no_shape(uint32_t code) {
  return (code >= 0xD800 && code <= 0xF8FF) || code >= 0xF0000 || (code & 0xFFFE) == 0xFFFE ||
         (code >= 0xFDD0 && code <= 0xFDEF);
}

// Names of files and arguments may be any bytes: one that is no UTF-8 is the surrogate that Python's surrogateescape makes of
// it.
CodePoint escaped(char byte) { return {0xDC00u | static_cast<uint8_t>(byte), 1}; }

CodePoint code_at(std::string_view text, size_t at) {
  return utf8_length(text.substr(at)) == 0 ? escaped(text[at]) : code_point_at(text, at);
}

CodePoint code_before(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  const CodePoint code = code_at(text, begin);
  return begin + code.length == end ? code : escaped(text[end - 1]);
}

void append_escape(uint32_t code, std::string& out) {
  char text[12];
  const char* form = code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x";
  std::snprintf(text, sizeof text, form, static_cast<unsigned>(code));
  out += text;
}

}  // namespace

bool is_python_space(uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
         code == 0x3000;
}

bool is_invisible(uint32_t code) {
  const Range* found = std::lower_bound(std::begin(kInvisible), std::end(kInvisible), code,
                                        [](const Range& r, uint32_t c) { return r.last < c; });
  return found != std::end(kInvisible) && found->first <= code;
}

std::string_view stripped_left(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const CodePoint code = code_at(text, at);
    if (!is_python_space(code.value)) break;
    at += code.length;
  }
  return text.substr(at);
}

std::string_view stripped_right(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const CodePoint code = code_before(text, end);
    if (!is_python_space(code.value)) break;
    end -= code.length;
  }
  return text.substr(0, end);
}

std::string_view stripped(std::string_view text) { return stripped_right(stripped_left(text)); }

size_t characters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

size_t bytes_of(std::string_view text, size_t count) {
  size_t at = 0;
  for (; count > 0 && at < text.size(); --count) at += code_at(text, at).length;
  return at;
}

std::string quoted(std::string_view text) {
  const bool doubled = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubled ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const CodePoint code = code_at(text, at);
    const std::string_view own = text.substr(at, code.length);
    at += code.length;
    if (own[0] == quote || own[0] == '\\') {
      (out += '\\') += own;
    } else if (code.value == '\n' || code.value == '\r' || code.value == '\t') {
      out += code.value == '\n' ? "\\n" : code.value == '\r' ? "\\r" : "\\t";
    } else if (code.value != ' ' && (is_invisible(code.value) || has_no_shape(code.value))) {
      append_escape(code.value, out);
    } else {
      out += own;
    }
  }
  return out += quote;
}

std::string shortened(std::string_view text, size_t most) {
  if (characters(text) <= most) return quoted(text);
  return quoted(std::string(text.substr(0, bytes_of(text, most - 3))) + "...");
}

std::string listed(const std::vector<std::string>& names, size_t most) {
  std::string text;
  for (size_t i = 0; i < std::min(most, names.size()); ++i) text += (i ? ", " : "") + shortened(names[i]);
  if (names.size() > most) text += " and " + std::to_string(names.size() - most) + " more";
  return text;
}

// The fewest digits that are read back as the same number, with an exponent where Python has one.
std::string float_text(double value) {
  std::string digits;
  for (int more = 0; more < 17; ++more) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    stream.precision(more);
    stream << std::scientific << value;
    digits = stream.str();
    double back = 0;
    if (to_double(digits, back) && back == value) break;
  }
  const size_t e = digits.find('e');
  const auto exponent = static_cast<int>(std::strtol(digits.c_str() + e + 1, nullptr, 10));
  const std::string sign = std::signbit(value) ? "-" : "";
  std::string all = digits.substr(sign.size(), e - sign.size());
  all.erase(std::remove(all.begin(), all.end(), '.'), all.end());
  const auto count = static_cast<int>(all.size());
  if (exponent < -4 || exponent >= 16) {
    char tail[8];
    std::snprintf(tail, sizeof tail, "e%+03d", exponent);
    return sign + all.substr(0, 1) + (count > 1 ? "." + all.substr(1) : "") + tail;
  }
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + all;
  if (count <= exponent + 1) return sign + all + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  return sign + all.substr(0, static_cast<size_t>(exponent) + 1) + "." + all.substr(static_cast<size_t>(exponent) + 1);
}

}  // namespace mobizo::trainer
