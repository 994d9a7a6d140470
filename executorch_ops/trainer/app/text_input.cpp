#include "text_input.h"

#include <cstdio>

#include "../files/errors.h"

namespace mobizo::trainer {

void TextInput::declare(Options& options) {
  options.text("tokenizer", "FILE", options_.tokenizer, "tokenizer.json of the program, for FILE.csv or FILE.jsonl of texts");
  options.text("text-column", "NAME", options_.text_column, "column of the text [text]");
  options.text("label-column", "NAME", options_.label_column, "column of the label [label]");
  options.choice("answers", "all|last", options_.answers, "of a conversation: all answers, or the last one");
  options.whole("max-length", options_.max_length, 1, "most tokens of a row of texts [that of the program]");
}

void TextInput::check(const std::string& file) const {
  if (is_text_file(file) && !given()) fail(file, ": of texts, which need --tokenizer");
  if (!is_text_file(file) && given()) fail("--tokenizer: expected FILE.csv or FILE.jsonl beside it, got '", file, "'");
}

TokenizedTexts TextInput::tokenized(const std::string& file, const Description& description) const {
  TokenizedTexts made = trainer::tokenized(file, description, options_);
  for (const std::string& warning : made.warnings) std::fprintf(stderr, "mobizo_runner: %s\n", printable(warning).c_str());
  return made;
}

Dataset TextInput::dataset(const std::string& file, const Description& description) const {
  return {file, tokenized(file, description).content};
}

}  // namespace mobizo::trainer
