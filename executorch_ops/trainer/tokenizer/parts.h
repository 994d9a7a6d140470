// How the parts of tokenizer.json are read: each is an object whose "type" names its kind, and may hold a list of others.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../files/errors.h"
#include "../files/json.h"
#include "../files/utf8.h"
#include "regex.h"

namespace mobizo::trainer {

[[noreturn]] inline void unknown_kind(const std::string& kind, const char* known) {
  fail("the kind '", kind, "' is not known, expected ", known);
}

constexpr size_t kMostBytes = size_t{1} << 28;  // a file may have parts that double a text again and again

inline void check_growth(size_t before, size_t after) {
  if (after > kMostBytes && after > before)
    fail("a text of ", before, " bytes becomes one of ", after, ", more than ", kMostBytes);
}

// What stands under `name`; nullptr if it is missing or null.
inline const Json* find_part(const Json& json, std::string_view name) {
  const Json* part = json.find(name);
  return part == nullptr || part->is_null() ? nullptr : part;
}

// A part and, in the place of a Sequence, those that it lists under `members`; `make(part)` for each of them, in order.
template <typename Make>
void for_each_part(const Json& part, const char* members, Make make) {
  if (part["type"].as_string() != "Sequence") return make(part);
  const Json::Array& list = part[members].as_array();
  for (size_t i = 0; i < list.size(); ++i)
    blaming(message(members, '[', i, ']'), [&] { for_each_part(list[i], members, make); });
}

inline bool flag(const Json& json, std::string_view name, bool otherwise) {
  const Json* value = find_part(json, name);
  return value == nullptr ? otherwise : value->as_bool();
}

inline std::string one_character(const Json& json, std::string_view name) {
  const std::string& text = json[name].as_string();
  if (text.empty() || utf8_length(text) != text.size()) fail("'", name, "' must be one character, got '", text, "'");
  return text;
}

// {"String": ...}, taken as it is, or {"Regex": ...}.
class Pattern {
 public:
  explicit Pattern(const Json& json) {
    if (const Json* text = json.find("String")) {
      text_ = text->as_string();
      if (text_.empty()) fail("'pattern' must not be empty");
    } else if (const Json* expression = json.find("Regex")) {
      regex_.emplace(expression->as_string());
    } else {
      fail("'pattern' must have 'String' or 'Regex'");
    }
  }

  bool is_regex() const { return regex_.has_value(); }
  const std::string& text() const { return text_; }
  void find_all(std::string_view text, std::vector<Match>& matches) const {
    if (regex_) return regex_->find_all(text, matches);
    for (size_t at = text.find(text_); at != std::string_view::npos; at = text.find(text_, at + text_.size()))
      matches.push_back({at, at + text_.size()});
  }

 private:
  std::string text_;
  std::optional<Regex> regex_;
};

// What a Replace puts in the place of each match.
class Replacement {
 public:
  explicit Replacement(const Json& json) : pattern_(json["pattern"]), content_(json["content"].as_string()) {
    if (pattern_.is_regex() && content_.find('$') != std::string::npos)
      fail("'content' refers to groups of the expression, which is not known: '", content_, "'");
  }

  const Pattern& pattern() const { return pattern_; }
  const std::string& content() const { return content_; }
  std::string apply(std::string_view text, const std::vector<Match>& matches) const {
    const size_t size = text.size() + matches.size() * content_.size();
    check_growth(text.size(), size);
    std::string out;
    out.reserve(size);
    size_t done = 0;
    for (const Match& match : matches) {
      out += text.substr(done, match.begin - done);
      out += content_;
      done = match.end;
    }
    return out += text.substr(done);
  }

 private:
  Pattern pattern_;
  std::string content_;
};

}  // namespace mobizo::trainer
