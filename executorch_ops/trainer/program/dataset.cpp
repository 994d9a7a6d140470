#include "dataset.h"

#include <fcntl.h>

#include <algorithm>
#include <set>

#include "../files/checksum.h"
#include "../files/errors.h"
#include "../files/safetensors.h"

namespace mobizo::trainer {
namespace {

constexpr const char* kSplits[] = {"train", "validation", "test"};

std::string file_checksum(const std::string& path) {
  const File file(path, O_RDONLY);
  return hex(crc32_of(file, 0, file.size()));
}

template <typename T>
std::vector<T> read_column(const SafetensorsFile& file, const std::string& name) {
  std::vector<T> values = file.read<T>(name);
  const std::vector<int64_t>& shape = file.tensors().at(name).shape;
  if (shape.size() != 1) fail("tensor '", name, "' must have one dimension, got shape ", shape_text(shape));
  return values;
}

Split read_split(const SafetensorsFile& file, const std::string& name) {
  Split split;
  split.name = name;
  split.tokens = read_column<int32_t>(file, name + ".tokens");
  split.offsets = read_column<int64_t>(file, name + ".offsets");
  split.targets = read_column<int32_t>(file, name + ".targets");
  split.labels = read_column<int32_t>(file, name + ".labels");
  const size_t rows = split.targets.size();
  if (split.labels.size() != rows)
    fail(name, ".labels must have ", rows, " rows as ", name, ".targets, got ", split.labels.size());
  if (split.offsets.size() != rows + 1) fail(name, ".offsets must have ", rows + 1, " elements, got ", split.offsets.size());
  const auto tokens = static_cast<int64_t>(split.tokens.size());
  if (split.offsets.front() != 0 || split.offsets.back() != tokens) fail(name, ".offsets must go from 0 to ", tokens);
  if (!std::is_sorted(split.offsets.begin(), split.offsets.end())) fail(name, ".offsets must not fall");
  for (int64_t row = 0; row < split.rows(); ++row) {
    const int64_t targets = split.targets[static_cast<size_t>(row)];
    if (targets < 1 || targets >= split.length(row))
      fail("row ", row, " of ", name, " has ", split.length(row), " tokens and cannot have ", targets, " of them to predict");
  }
  return split;
}

// How many tokens of a row's input come before its tail, which begins with the last occurrence of the invocation tokens: -1 if
// there is none; all, if the program has no invocation tokens.
int64_t tokens_before_tail(const Split& split, int64_t row, const Description& description) {
  const int64_t inputs = split.length(row) - 1;
  if (!description.invocation_tokens) return inputs;
  const std::vector<int64_t>& wanted = *description.invocation_tokens;
  const auto begin = split.tokens.begin() + split.offsets[static_cast<size_t>(row)], end = begin + inputs;
  const auto found = std::find_end(begin, end, wanted.begin(), wanted.end());
  return found == end ? -1 : found - begin;
}

void check_length(int64_t inputs, int64_t targets, int64_t before, const Description& description) {
  if (!description.invocation_tokens) {
    if (inputs > description.max_length)
      fail("expected at most ", description.max_length, " tokens before the last, got ", inputs);
    return;
  }
  const std::string invocation = "the invocation tokens " + Json::list(*description.invocation_tokens).dump();
  const int64_t most = description.tail_length;
  if (before < 0) fail("expected ", invocation, " before its last token, got none");
  if (before + most > description.max_length)
    fail("expected at most ", description.max_length - most, " tokens before ", invocation, ", got ", before);
  if (inputs - before > most)
    fail("expected at most ", most, " tokens from ", invocation, " to that before the last, got ", inputs - before);
  if (inputs - targets < before) fail("expected its ", targets, " tokens to predict after ", invocation);
}

void check_fit(const Split& split, int64_t row, const Description& description) {
  const int64_t length = split.length(row), targets = split.targets[static_cast<size_t>(row)];
  check_length(length - 1, targets, tokens_before_tail(split, row, description), description);
  if (targets > description.targets_per_row)
    fail("expected at most ", description.targets_per_row, " tokens to predict, got ", targets);
  for (int64_t i = 0; i < length; ++i)
    if (split.token(row, i) >= description.vocabulary)
      fail("token ", split.token(row, i), " is not in the vocabulary of ", description.vocabulary);
}

}  // namespace

Dataset::Dataset(const std::string& path) : path_(path) {
  content_.checksum = file_checksum(path);
  const SafetensorsFile file(path);
  blaming(path, [&] {
    if (file.metadata("format") != kDatasetFormat)
      fail("expected a data set of format ", kDatasetFormat, ", got '", file.metadata("format"), "'");
    content_.tokenizer = file.metadata("tokenizer");
    blaming("labels", [&] {
      const Json labels = parse_json(file.metadata("labels"));
      for (const Json& label : labels.as_array()) content_.labels.push_back(label.as_string());
    });
    blaming("candidate_tokens", [&] {
      const Json tokens = parse_json(file.metadata("candidate_tokens"));
      if (!tokens.is_null()) content_.candidate_tokens = tokens.as_ints();
    });
    for (const char* name : kSplits) content_.splits[name] = read_split(file, name);
    content_.order = read_column<int32_t>(file, "train.order");
    if (file.has("train.in_turn")) content_.in_turn = read_column<int32_t>(file, "train.in_turn");
    check_content();
  });
}

Dataset::Dataset(std::string path, DatasetContent content) : path_(std::move(path)), content_(std::move(content)) {
  blaming(path_, [&] { check_content(); });
}

// What docs/formats.md asks of a data set, whatever the program. mobizo_kernels/data/tokenized.py asks the same.
void Dataset::check_content() const {
  if (content_.candidate_tokens) {
    const std::set<int64_t> different(content_.candidate_tokens->begin(), content_.candidate_tokens->end());
    if (different.size() < 2 || different.size() != content_.candidate_tokens->size() ||
        different.size() != content_.labels.size())
      fail("candidate_tokens must be a different token for each of at least two labels, got ",
           Json::list(*content_.candidate_tokens).dump(), " for ", content_.labels.size(), " labels");
  }
  if (content_.order.empty()) fail("train.order must name at least one row");
  const int64_t rows = content_.splits.at("train").rows();
  for (const int64_t row : content_.order)
    if (row < 0 || row >= rows) fail("train.order must name rows from 0 to ", rows - 1, ", got ", row);
  std::set<int64_t> different;
  for (const int64_t row : content_.in_turn)
    if (row < 0 || row >= rows || !different.insert(row).second)
      fail("train.in_turn must name different rows from 0 to ", rows - 1, ", got ", row);
  for (const auto& [name, split] : content_.splits)
    for (int64_t row = 0; row < split.rows(); ++row)
      blaming(message("row ", row, " of ", name), [&, &split = split] { check_row(split, row); });
}

void Dataset::check_row(const Split& split, int64_t row) const {
  const int64_t targets = split.targets[static_cast<size_t>(row)], label = split.labels[static_cast<size_t>(row)];
  for (int64_t i = 0; i < split.length(row); ++i)
    if (split.token(row, i) < 0) fail("token ids must be from 0, got ", split.token(row, i));
  if (label < -1 || label >= static_cast<int64_t>(content_.labels.size()))
    fail("its label must be -1 or below ", content_.labels.size(), ", got ", label);
  if (!content_.candidate_tokens) return;
  const std::vector<int64_t>& candidates = *content_.candidate_tokens;
  for (int64_t i = -targets; i < 0; ++i)
    if (std::find(candidates.begin(), candidates.end(), split.token(row, i)) == candidates.end())
      fail("token ", split.token(row, i), " is to be predicted and is not a candidate");
  if (label >= 0 && candidates[static_cast<size_t>(label)] != split.token(row, -1))
    fail("its last token, ", split.token(row, -1), ", is not that of its label ", label);
}

const Split& Dataset::split(const std::string& name) const {
  const auto found = content_.splits.find(name);
  if (found == content_.splits.end() || found->second.rows() == 0) fail(path_, ": the data set has no rows for ", name);
  return found->second;
}

std::vector<int64_t> Dataset::training_rows(int64_t step, int64_t batch_size) const {
  const uint64_t first = static_cast<uint64_t>(step) * static_cast<uint64_t>(batch_size);
  std::vector<int64_t> rows;
  for (uint64_t i = 0; i < static_cast<uint64_t>(batch_size); ++i)
    rows.push_back(content_.order[(first + i) % content_.order.size()]);
  return rows;
}

void Dataset::check(const Description& description) const {
  blaming(path_, [&] {
    if (description.tokenizer && *description.tokenizer != content_.tokenizer)
      fail("the data set is of another tokenizer: the program expects ", *description.tokenizer, ", got '", content_.tokenizer,
           "'");
    if (description.candidate_tokens && description.candidate_tokens != content_.candidate_tokens) {
      const std::string got = content_.candidate_tokens ? Json::list(*content_.candidate_tokens).dump() : "none";
      fail("candidate_tokens must be those of the program, ", Json::list(*description.candidate_tokens).dump(), ", got ", got);
    }
    for (const auto& [name, split] : content_.splits)
      for (int64_t row = 0; row < split.rows(); ++row)
        blaming(message("row ", row, " of ", name), [&, &split = split] { check_fit(split, row, description); });
  });
}

void check_fit(const std::vector<int64_t>& tokens, int64_t targets, const Description& description) {
  Split split;
  split.tokens.assign(tokens.begin(), tokens.end());
  split.offsets = {0, static_cast<int64_t>(tokens.size())};
  split.targets = {static_cast<int32_t>(targets)};
  split.labels = {-1};
  check_fit(split, 0, description);
}

Batch make_batch(const Split& split, const std::vector<int64_t>& rows, const Description& description) {
  int64_t longest = 0;
  for (const int64_t row : rows) longest = std::max(longest, tokens_before_tail(split, row, description));
  Batch batch{};
  batch.rows = static_cast<int64_t>(rows.size());
  batch.length = description.columns(longest);
  batch.targets_per_row = description.targets_per_row;
  for (const int64_t row : rows) {
    const int64_t tokens = split.length(row) - 1;
    const int64_t first = batch.length - description.tail_length - tokens_before_tail(split, row, description);
    for (int64_t column = 0; column < batch.length; ++column) {
      const bool inside = column >= first && column < first + tokens;
      batch.input_ids.push_back(inside ? split.token(row, column - first) : description.pad_token);
      batch.attention_mask.push_back(inside);
    }
    const int64_t targets = split.targets[static_cast<size_t>(row)];
    for (int64_t k = 0; k < batch.targets_per_row; ++k) {
      batch.target_positions.push_back(k < targets ? first + tokens - targets + k : 0);
      batch.target_ids.push_back(k < targets ? split.token(row, k - targets) : kNoTarget);
    }
  }
  return batch;
}

}  // namespace mobizo::trainer
