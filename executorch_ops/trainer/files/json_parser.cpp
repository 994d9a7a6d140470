#include <algorithm>
#include <charconv>
#include <set>

#include "errors.h"
#include "json.h"
#include "json_numbers.h"

namespace mobizo::trainer {
namespace {

constexpr int kMostLevels = 64;

// The bytes of the code point at the start of `text`, 0 if there is none: UTF-8 has the shortest form only and no surrogates.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const uint8_t first = byte(0), second = byte(1);
  const size_t length = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  const uint8_t least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  if (length > 1 && (second < least || second > most)) return 0;
  for (size_t i = 2; i < length; ++i)
    if (byte(i) < 0x80 || byte(i) > 0xBF) return 0;
  return length;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    check_utf8();
    Json value = parse_value(0);
    skip_space();
    if (at_ < text_.size()) wrong("the end");
    return value;
  }

 private:
  [[noreturn]] void wrong(const char* expected) const { fail("not JSON at byte ", at_, ": expected ", expected); }

  void check_utf8() {
    while (at_ < text_.size()) {
      const size_t length = utf8_length(text_.substr(at_));
      if (length == 0) wrong("UTF-8");
      at_ += length;
    }
    at_ = 0;
  }

  void skip_space() { at_ = std::min(text_.find_first_not_of(" \t\n\r", at_), text_.size()); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json parse_value(int level) {
    if (level > kMostLevels) wrong("fewer levels");
    skip_space();
    switch (peek()) {
      case '{':
        return parse_object(level);
      case '[':
        return parse_array(level);
      case '"':
        return parse_string();
      default:
        break;
    }
    if (take("null")) return nullptr;
    if (take("true")) return true;
    if (take("false")) return false;
    return parse_number();
  }

  Json parse_object(int level) {
    Json::Object object;
    std::set<std::string> names;
    ++at_;
    for (skip_space(); !take("}"); skip_space()) {
      if (!object.empty() && !take(",")) wrong("',' or '}'");
      skip_space();
      if (peek() != '"') wrong("a name");
      std::string name = parse_string();
      if (!names.insert(name).second) wrong("each name once");
      skip_space();
      if (!take(":")) wrong("':'");
      object.emplace_back(std::move(name), parse_value(level + 1));
    }
    return object;
  }

  Json parse_array(int level) {
    Json::Array array;
    ++at_;
    for (skip_space(); !take("]"); skip_space()) {
      if (!array.empty() && !take(",")) wrong("',' or ']'");
      array.push_back(parse_value(level + 1));
    }
    return array;
  }

  std::string parse_string() {
    std::string out;
    ++at_;
    for (;;) {
      if (at_ >= text_.size()) wrong("'\"'");
      const char c = text_[at_++];
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) wrong("no control character");
      if (c == '\\') {
        parse_escape(out);
      } else {
        out += c;
      }
    }
  }

  void parse_escape(std::string& out) {
    constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const char c = peek();
    const size_t which = kNames.find(c);
    ++at_;
    if (which != std::string_view::npos && c != '\0') {
      out += kMeanings[which];
    } else if (c == 'u') {
      append_utf8(parse_code_point(), out);
    } else {
      wrong("an escape");
    }
  }

  uint32_t parse_hex() {
    uint32_t value = 0;
    const std::string_view digits = text_.substr(std::min(at_, text_.size()), 4);
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() != 4 || result.ptr != digits.data() + 4) wrong("four hexadecimal digits");
    at_ += 4;
    return value;
  }

  uint32_t parse_code_point() {
    const uint32_t first = parse_hex();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || !take("\\u")) wrong("a pair of surrogates");
    const uint32_t second = parse_hex();
    if (second < 0xDC00 || second > 0xDFFF) wrong("a pair of surrogates");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  static void append_utf8(uint32_t code, std::string& out) {
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

  size_t skip_digits() {
    const size_t first = at_;
    at_ = std::min(text_.find_first_not_of("0123456789", at_), text_.size());
    return at_ - first;
  }

  Json parse_number() {
    const size_t first = at_;
    take("-");
    const bool zero = peek() == '0';
    const size_t digits = skip_digits();
    if (digits == 0 || (zero && digits > 1)) wrong("a value");
    bool whole = true;
    if (take(".")) {
      whole = false;
      if (skip_digits() == 0) wrong("digits");
    }
    if (take("e") || take("E")) {
      whole = false;
      if (!take("+")) take("-");
      if (skip_digits() == 0) wrong("digits");
    }
    const std::string_view text = text_.substr(first, at_ - first);
    if (whole) {
      int64_t value = 0;
      if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc()) wrong("a number within int64");
      return value;
    }
    double value = 0;
    if (!to_double(text, value)) wrong("a number within float64");
    return value;
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Json parse_json(std::string_view text) { return Parser(text).document(); }

}  // namespace mobizo::trainer
