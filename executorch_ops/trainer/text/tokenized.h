// From a file of texts to a data set: what mobizo tokenize makes, byte for byte. mobizo_kernels/cli/tokenize.py and
// data/tokenized.py are the twins in Python.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../program/dataset.h"
#include "tokenizer_file.h"

namespace mobizo::trainer {

constexpr int64_t kTestRows = 600;  // of a data set, unless it is told otherwise

struct TextOptions {
  std::string tokenizer;  // tokenizer.json
  std::string text_column = "text", label_column = "label";
  std::string answers = "all";  // of a conversation, or "last"
  int64_t steps = 1;            // to lay out batches for
  int64_t batch_size = 1;
  uint64_t seed = 0;                                              // of the batches; of a negative one the size, see size_of
  std::optional<int64_t> train_rows, validation_rows, eval_rows;  // all of them
  std::optional<int64_t> max_length;                              // that of the program
};

// Of a number, as TextOptions has it of a seed.
constexpr uint64_t size_of(int64_t seed) {
  return seed < 0 ? uint64_t{0} - static_cast<uint64_t>(seed) : static_cast<uint64_t>(seed);
}

// A data set and what was odd about the file, but no error.
struct TokenizedTexts {
  DatasetContent content;
  std::string bytes;  // of its file
  std::vector<std::string> warnings;
};

// Whether a file is of texts, and not a data set.
bool is_text_file(const std::string& path);

// Throws Error, naming the line where it has one.
TokenizedTexts tokenized(const std::string& path, const Description& description, const TextOptions& options);

}  // namespace mobizo::trainer
