// Tokens beside those of the model, taken out of a text before the model sees it: "added_tokens" of tokenizer.json.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "../files/json.h"
#include "bpe.h"
#include "normalizer.h"

namespace mobizo::trainer {

// Finds the longest of a set of strings, at the leftmost place where there is one.
class StringSet {
 public:
  struct Found {
    size_t begin, end;
    int64_t id;
  };
  // A string that is there already keeps its id.
  void insert(std::string_view text, int64_t id);
  // The first from byte `from` on.
  std::optional<Found> find(std::string_view text, size_t from) const;

 private:
  struct Node {
    std::map<char, size_t> next;
    int64_t id = -1;  // of the string that ends here
  };
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::array<bool, 256> begins_{};
};

class AddedTokens {
 public:
  AddedTokens() = default;
  AddedTokens(const Json& list, const Bpe& model, const Normalizer& normalizer);

  // A token of a text, or what is between tokens.
  struct Part {
    size_t begin, end;  // bytes; of a token, with the white space that it takes along
    int64_t id;         // -1: no token
  };
  // Appends the parts of a text before normalization, or after it; tokens are in the one or in the other.
  void split(std::string_view text, bool normalized, std::vector<Part>& parts) const;

  std::optional<int64_t> id(std::string_view token) const;
  const std::string* token(int64_t id) const;  // nullptr if there is none
  bool is_special(const std::string& token) const { return special_.count(token) > 0; }
  const std::unordered_map<std::string, int64_t>& ids() const { return ids_; }

 private:
  struct Flags {
    bool single_word, lstrip, rstrip;
  };
  std::unordered_map<std::string, int64_t> ids_;
  std::unordered_map<int64_t, std::string> tokens_;  // normalized, if the token is, for a decoder undoes that
  std::unordered_map<int64_t, Flags> flags_;
  std::unordered_set<std::string> special_;
  StringSet raw_, normalized_;
};

}  // namespace mobizo::trainer
