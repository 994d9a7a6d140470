#include <algorithm>
#include <charconv>
#include <set>

#include "errors.h"
#include "json.h"
#include "json_numbers.h"
#include "utf8.h"

namespace mobizo::trainer {
namespace {

constexpr int kMostLevels = 64;

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
    at_ = utf8_valid_bytes(text_);
    if (at_ < text_.size()) wrong("UTF-8");
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
