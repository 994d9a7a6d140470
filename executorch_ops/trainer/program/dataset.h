// A tokenized data set and the batches a program takes of it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "description.h"

namespace mobizo::trainer {

// The rows of one split: row i holds tokens[offsets[i]] .. tokens[offsets[i + 1] - 1], its answer of targets[i] tokens last.
struct Split {
  std::string name;
  std::vector<int32_t> tokens;
  std::vector<int64_t> offsets;
  std::vector<int32_t> targets, labels;  // a label is -1 if the row has none

  int64_t rows() const { return static_cast<int64_t>(targets.size()); }
  int64_t length(int64_t row) const { return offsets[static_cast<size_t>(row) + 1] - offsets[static_cast<size_t>(row)]; }
  // Token i of a row; negative i counts from the end.
  int64_t token(int64_t row, int64_t i) const {
    return tokens[static_cast<size_t>(offsets[static_cast<size_t>(row) + (i < 0)] + i)];
  }
};

// The inputs of some rows, padded so that they end in the same column or, with invocation tokens, so that these begin in the
// same column. A row's input is its tokens but the last; target k is predicted by the logits at the position before it.
struct Batch {
  int64_t rows, length, targets_per_row;
  std::vector<int64_t> input_ids, attention_mask;     // [rows, length]
  std::vector<int64_t> target_positions, target_ids;  // [rows, targets_per_row]; 0 and kNoTarget where a row has fewer
};
constexpr int64_t kNoTarget = -100;

constexpr const char* kDatasetFormat = "mobizo-dataset-1";

// What a data set holds.
struct DatasetContent {
  std::string tokenizer, checksum;
  std::vector<std::string> labels;
  std::optional<std::vector<int64_t>> candidate_tokens;  // none if the answers are free text
  std::map<std::string, Split> splits;                   // train, validation and test
  std::vector<int32_t> order, in_turn;
};

// Throws Error unless a row of these tokens, the last `targets` of them its answer, fits the program.
void check_fit(const std::vector<int64_t>& tokens, int64_t targets, const Description& description);

class Dataset {
 public:
  // Throws Error, naming the tensor or the row, unless the file is a data set whose parts agree.
  explicit Dataset(const std::string& path);
  // One that was made of the texts in the file `path`. Throws Error unless its parts agree.
  Dataset(std::string path, DatasetContent content);

  const std::string& path() const { return path_; }
  const std::string& tokenizer() const { return content_.tokenizer; }
  const std::vector<std::string>& labels() const { return content_.labels; }
  // crc32 of the file, 8 hexadecimal digits.
  const std::string& checksum() const { return content_.checksum; }
  const std::map<std::string, Split>& splits() const { return content_.splits; }
  // Throws Error unless the split is there and has a row.
  const Split& split(const std::string& name) const;
  const std::vector<int32_t>& order() const { return content_.order; }
  // Rows of the training split by chance, one of each label in turn; empty if the file does not say.
  const std::vector<int32_t>& in_turn() const { return content_.in_turn; }
  // The rows of the training split that step `step` takes.
  std::vector<int64_t> training_rows(int64_t step, int64_t batch_size) const;
  // Throws Error, naming the row, unless every row fits the program.
  void check(const Description& description) const;

 private:
  void check_content() const;
  void check_row(const Split& split, int64_t row) const;

  std::string path_;
  DatasetContent content_;
};

Batch make_batch(const Split& split, const std::vector<int64_t>& rows, const Description& description);

}  // namespace mobizo::trainer
