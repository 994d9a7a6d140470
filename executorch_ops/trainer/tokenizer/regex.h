// Regular expressions as tokenizer.json has them: Oniguruma's syntax, over Unicode. Matched by PCRE2, without which a tokenizer
// that needs one is refused.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mobizo::trainer {

struct Match {
  size_t begin, end;  // bytes
};

class Regex {
 public:
  // Throws Error where the expression is none, or is one that PCRE2 would take in another sense.
  explicit Regex(const std::string& pattern);
  ~Regex();
  Regex(Regex&&) noexcept;

  // The matches of UTF-8, from left to right; none overlaps the one before.
  void find_all(std::string_view text, std::vector<Match>& matches) const;

  static bool supported();  // built with PCRE2

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

// The expression in PCRE2's syntax; what the two take in different senses is refused by name.
std::string to_pcre2(std::string_view pattern);

}  // namespace mobizo::trainer
