// Labelled texts as prompts that end with the word of their label. mobizo_kernels/data/prompts.py is the twin in Python.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "rows.h"
#include "tokenizer_file.h"

namespace mobizo::trainer {

// A piece of a template: plain text, then what fills a name in braces, if there is one.
struct TemplatePart {
  std::string plain;
  std::optional<std::string> name;
};

// Throws Error for braces without a partner, and for anything but a name in them.
std::vector<TemplatePart> parse_template(const std::string& text);

class PromptEncoder {
 public:
  // Both have to outlive it. Throws Error if the program takes no labelled texts, its words are not those of its candidate
  // tokens, or max_length leaves no room for a text.
  PromptEncoder(const Description& description, const TokenizerFile& tokenizer, int64_t max_length);

  // Names in braces other than {text}, each once.
  const std::vector<std::string>& columns() const { return columns_; }
  // Throws Error unless `labels`, sorted, are those that have words.
  void check_labels(const std::vector<std::string>& labels) const;
  Row encode(const Example& example) const;

 private:
  struct Prompt {
    std::string text;
    std::vector<int64_t> tokens;
  };
  std::string fill(const std::string& text, const Columns& columns) const;
  std::vector<int64_t> tokens(const std::string& prompt) const { return file_.tokenizer().encode(prompt, true); }
  int64_t word_token(const std::string& prompt, const std::string& word) const;
  Prompt truncated(const Example& example, size_t count) const;
  size_t likely_end(const Example& example, size_t count) const;

  const PromptDescription& prompt_;
  const TokenizerFile& file_;
  std::vector<int64_t> candidates_;
  int64_t max_length_;
  std::vector<TemplatePart> parts_;
  std::vector<std::string> columns_;
};

}  // namespace mobizo::trainer
