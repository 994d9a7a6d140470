// The special tokens around a text, such as one that begins it: "post_processor" of tokenizer.json.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "../files/json.h"

namespace mobizo::trainer {

class Template {
 public:
  Template() = default;  // adds none
  explicit Template(const Json& json);

  // Throws Error unless it puts tokens around a text that there are.
  void check(const std::function<bool(int64_t)>& is_token) const;
  std::vector<int64_t> apply(std::vector<int64_t> ids, bool add_special) const;

 private:
  struct Item {
    bool text;                 // the text itself
    std::vector<int64_t> ids;  // or these tokens
  };
  void read(const Json& json);

  std::vector<std::vector<Item>> templates_;  // each around what the one before gives
};

}  // namespace mobizo::trainer
