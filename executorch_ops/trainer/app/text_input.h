// The options of a command that takes a file of texts in the place of a data set.
#pragma once

#include <optional>
#include <string>

#include "../text/tokenized.h"
#include "options.h"

namespace mobizo::trainer {

class TextInput {
 public:
  // Declares --tokenizer and what goes with it.
  void declare(Options& options);
  // Throws Error if the file is of texts and there is no tokenizer, or the other way round.
  void check(const std::string& file) const;
  bool given() const { return !options_.tokenizer.empty(); }
  const std::string& tokenizer() const { return options_.tokenizer; }
  TextOptions& options() { return options_; }

  // The texts in tokens; what is odd about them is told on stderr.
  TokenizedTexts tokenized(const std::string& file, const Description& description) const;
  Dataset dataset(const std::string& file, const Description& description) const;

 private:
  TextOptions options_;
};

}  // namespace mobizo::trainer
