// What becomes of a text before it is cut: "normalizer" of tokenizer.json.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "../files/json.h"

namespace mobizo::trainer {

class Normalizer {
 public:
  Normalizer() = default;  // leaves texts as they are
  explicit Normalizer(const Json& json);

  // at_start: whether the text begins where the whole one does; afterwards, whether it still does.
  void apply(std::string& text, bool& at_start) const;
  bool inserts() const { return inserts_; }  // characters that stand for none of the text

 private:
  bool inserts_ = false;
  std::vector<std::function<void(std::string&, bool&)>> steps_;
};

}  // namespace mobizo::trainer
