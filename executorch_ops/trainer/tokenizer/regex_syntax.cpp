// From Oniguruma's syntax to PCRE2's. An escape or a group that is not known here is refused, so that no expression means one
// thing to the tokenizer that was trained and another one to this one.
#include <cctype>
#include <sstream>
#include <vector>

#include "../files/errors.h"
#include "../files/utf8.h"
#include "regex.h"
#include "unicode.h"

namespace mobizo::trainer {
namespace {

// What PCRE2's \s and \w say otherwise: U+180E, marks, connectors, and, outside of classes alone, other digits in Latin-1.
constexpr std::string_view kSpace = "\\p{Z}\\x{9}-\\x{d}\\x{85}";
constexpr std::string_view kLatinDigits = "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
constexpr std::string_view kWordSymbols = "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
constexpr std::string_view kHexDigits = "0-9A-Fa-f";

// The members of a class that are of a general category, whatever the Unicode of this PCRE2, from 14 on.
std::string members_of(std::string_view category) {
  std::ostringstream out;
  out << "\\p{" << category << '}' << std::hex;
  for (const auto& [first, last] : newer_characters(category)) {
    out << "\\x{" << first << '}';
    if (first < last) out << "-\\x{" << last << '}';
  }
  return out.str();
}

std::string word_members(bool in_class) {
  std::string members(kWordSymbols);
  if (!in_class) members += kLatinDigits;
  for (const char* category : {"L", "M", "Nd", "Nl", "Pc"}) members += members_of(category);
  return members;
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string translated() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_member(c);
      } else if (c == '[') {
        begin_class();
      } else if (c == '(') {
        group();
      } else if (c == ')') {
        if (!caseless_.empty()) caseless_.pop_back();
        copy(1);
      } else if (c == '{') {
        interval();
      } else {
        if (c == '|') last_letter_ = 0;
        literal();
      }
    }
    return out_;
  }

 private:
  [[noreturn]] void refuse(size_t bytes) const {
    fail("regular expression '", pattern_, "': '", pattern_.substr(at_, bytes), "' at byte ", at_, " is not known");
  }
  bool next_is(std::string_view text) const { return pattern_.substr(at_, text.size()) == text; }
  void copy(size_t bytes) {
    out_ += pattern_.substr(at_, bytes);
    at_ += bytes;
  }
  void put(std::string_view text) {
    out_ += text;
    at_ += 2;
  }
  // A character as it stands.
  void literal() {
    const CodePoint found = code_point_at(pattern_, at_);
    one_character(found.value, found.length);
    copy(found.length);
  }

  // Refuses a character, `bytes` of the pattern, if case makes it one of several: with (?i) Oniguruma takes "ss" for what is
  // written as one character, too, and the other way round. To be called for each character that stands for itself.
  void one_character(uint32_t code, size_t bytes) {
    last_ = last_ == Last::kOpenRange ? Last::kRange : Last::kCharacter;
    if (!caseless()) {
      last_letter_ = 0;
      return;
    }
    const bool may_be_several = (code >= 0x80 && code < 0x600) || (code >= 0x1e00 && code < 0x2000) || (code >> 8) == 0xfb;
    const auto lower = static_cast<char>(code < 0x80 ? std::tolower(static_cast<int>(code)) : 0);
    const std::string pair{last_letter_, lower};
    last_letter_ = in_class_ ? '\0' : lower;
    for (const char* several : {"ss", "st", "ff", "fi", "fl"})
      if (pair == several) refuse(bytes);
    if (may_be_several) refuse(bytes);
  }

  bool caseless() const { return !caseless_.empty() ? caseless_.back() : all_caseless_; }

  // A set of characters in place of an escape.
  void put_set(std::string_view members) {
    if (in_class_ && last_ == Last::kOpenRange) refuse(2);  // a range that would end with a set
    last_ = Last::kSet;
    last_letter_ = 0;
    if (!in_class_) out_ += '[';
    put(members);
    if (!in_class_) out_ += ']';
  }
  void put_complement(std::string_view members) {
    if (in_class_) refuse(2);  // classes have no such members
    out_ += "[^";
    put(members);
    out_ += ']';
  }

  void escape() {
    const char c = at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0';
    switch (c) {
      case 's':
        return put_set(kSpace);
      case 'S':
        return put_complement(kSpace);
      case 'w':
        return put_set(word_members(in_class_));
      case 'W':
        return put_complement(word_members(false));
      case 'h':
        return put_set(kHexDigits);
      case 'H':
        return put_complement(kHexDigits);
      case 'd':
        return put_set(members_of("Nd"));
      case 'D':
        return put_complement(members_of("Nd"));
      case 'v':
        one_character('\v', 2);
        return put("\\x{b}");
      case 'p':
      case 'P':
        return property(c == 'P');
      case 'x':
        return code_point();
      case 'u':
        return four_digits();
      case 'n':
      case 'r':
      case 't':
      case 'f':
        one_character('\n', 2);
        return copy(2);
      case 'A':
      case 'z':
        if (in_class_) refuse(2);
        return copy(2);
      default:
        if (c == '\0' || std::isalnum(static_cast<unsigned char>(c)) != 0) refuse(2);
        copy(1);
        return literal();
    }
  }

  // What is in the braces behind an escape; `end` becomes the byte behind them.
  std::string_view braced(size_t& end) const {
    const size_t close = pattern_.find('}', at_);
    if (at_ + 2 >= pattern_.size() || pattern_[at_ + 2] != '{' || close == std::string_view::npos) refuse(2);
    end = close + 1;
    return pattern_.substr(at_ + 3, close - at_ - 3);
  }

  // A general category. Scripts and other properties are other sets to PCRE2 than to Oniguruma, and what is unassigned is a
  // matter of the version.
  void property(bool complement) {
    size_t end = 0;
    std::string_view name = braced(end);
    if (!name.empty() && name[0] == '^') {
      complement = !complement;
      name.remove_prefix(1);
    }
    constexpr std::string_view kKnown =
        " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp "
        "Cc Cf Co ";
    if (caseless() && (name == "Lu" || name == "Ll" || name == "Lt"))
      refuse(end - at_);  // which case is a matter of the library
    if (name.empty() || kKnown.find(message(' ', name, ' ')) == std::string_view::npos) refuse(end - at_);
    const std::string members = members_of(name);
    if (complement) {
      put_complement(members);
    } else {
      put_set(members);
    }
    at_ = end;
  }

  void code_point() {
    size_t end = 0;
    const std::string_view digits = braced(end);
    if (digits.empty() || digits.size() > 6 || digits.find_first_not_of("0123456789ABCDEFabcdef") != std::string_view::npos)
      refuse(end - at_);
    one_character(static_cast<uint32_t>(std::stoul(std::string(digits), nullptr, 16)), end - at_);
    copy(end - at_);
  }

  void four_digits() {
    const std::string_view digits = pattern_.substr(at_ + 2, 4);
    for (const char c : digits)
      if (std::isxdigit(static_cast<unsigned char>(c)) == 0) refuse(2);
    if (digits.size() < 4) refuse(2);
    one_character(static_cast<uint32_t>(std::stoul(std::string(digits), nullptr, 16)), 6);
    out_ += message("\\x{", digits, "}");
    at_ += 6;
  }

  void begin_class() {
    in_class_ = true;
    last_ = Last::kNothing;
    last_letter_ = 0;
    copy(next_is("[^") ? 2 : 1);
    if (next_is("]")) refuse(1);
  }

  // A class in a class, of POSIX or of Ruby, and an intersection are Oniguruma's alone.
  void class_member(char c) {
    if (c == '[') refuse(1);
    if (next_is("&&")) refuse(2);
    if (c == ']') {
      in_class_ = false;
      return copy(1);
    }
    const bool last_member = at_ + 1 < pattern_.size() && pattern_[at_ + 1] == ']';
    if (c == '-' && !last_member && last_ != Last::kNothing && last_ != Last::kOpenRange) {
      if (last_ == Last::kSet) refuse(1);       // a range that would begin with a set
      if (last_ == Last::kRange) out_ += '\\';  // where it stands for itself
      if (last_ == Last::kCharacter) last_ = Last::kOpenRange;
      return copy(1);
    }
    literal();
  }

  void group() {
    if (next_is("(*")) refuse(2);       // a verb to PCRE2
    if (next_is("(?i)") && at_ == 0) {  // further on it would have another reach
      all_caseless_ = true;
      return copy(4);
    }
    caseless_.push_back(caseless() || next_is("(?i:"));
    if (!next_is("(?")) return copy(1);
    for (const std::string_view start : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"})
      if (next_is(start)) return copy(start.size());
    refuse(4);
  }

  // {n}, {n,} or {n,m}. What follows may make it lazy, but for {n}, and never possessive, as in Ruby.
  void interval() {
    const size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) refuse(1);
    const std::string_view inside = pattern_.substr(at_ + 1, end - at_ - 1);
    const bool whole = !inside.empty() && inside.find_first_not_of("0123456789,") == std::string_view::npos &&
                       inside[0] != ',' && inside.find(',') == inside.rfind(',');
    const char next = end + 1 < pattern_.size() ? pattern_[end + 1] : '\0';
    if (!whole || next == '+' || (next == '?' && inside.find(',') == std::string_view::npos)) refuse(end + 2 - at_);
    copy(end + 1 - at_);
  }

  std::string_view pattern_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
  enum class Last { kNothing, kCharacter, kOpenRange, kRange, kSet } last_ = Last::kNothing;  // member of the class
  bool all_caseless_ = false;
  std::vector<bool> caseless_;  // of the groups around
  char last_letter_ = 0;        // in lower case, of the part without case; 0 if it is none
};

}  // namespace

std::string to_pcre2(std::string_view pattern) { return Translator(pattern).translated(); }

}  // namespace mobizo::trainer
