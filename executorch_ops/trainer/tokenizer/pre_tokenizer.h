// How a text is cut into the pieces that the model takes one by one: "pre_tokenizer" of tokenizer.json.
#pragma once

#include <functional>
#include <vector>

#include "../files/json.h"
#include "pieces.h"

namespace mobizo::trainer {

class PreTokenizer {
 public:
  PreTokenizer() = default;  // cuts nothing
  // inserts: whether the normalizer puts in characters that stand for none of the text.
  PreTokenizer(const Json& json, bool inserts);

  void apply(Pieces& pieces) const {
    for (const auto& step : steps_) step(pieces);
  }

 private:
  std::vector<std::function<void(Pieces&)>> steps_;
};

}  // namespace mobizo::trainer
