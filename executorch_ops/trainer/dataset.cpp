#include "dataset.h"

#include <fcntl.h>

#include <algorithm>
#include <cstdio>

#include "crc32.h"
#include "errors.h"
#include "safetensors.h"

namespace mobizo::trainer {
namespace {

constexpr const char* kFormat = "mobizo-dataset-1";
constexpr const char* kSplits[] = {"train", "validation", "test"};

std::string checksum_of(const std::string& path) {
  const File file(path, O_RDONLY);
  std::vector<char> chunk(1 << 20);
  uint32_t crc = 0;
  const int64_t size = file.size();
  for (int64_t at = 0; at < size; at += static_cast<int64_t>(chunk.size())) {
    const size_t bytes = static_cast<size_t>(std::min<int64_t>(static_cast<int64_t>(chunk.size()), size - at));
    file.read(chunk.data(), bytes, at);
    crc = crc32(chunk.data(), bytes, crc);
  }
  char digits[9];
  std::snprintf(digits, sizeof digits, "%08x", static_cast<unsigned>(crc));
  return digits;
}

Split read_split(const SafetensorsFile& file, const std::string& name) {
  Split split;
  split.name = name;
  split.tokens = file.read<int32_t>(name + ".tokens");
  split.offsets = file.read<int64_t>(name + ".offsets");
  split.targets = file.read<int32_t>(name + ".targets");
  split.labels = file.read<int32_t>(name + ".labels");
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

}  // namespace

Dataset::Dataset(const std::string& path) : path_(path), checksum_(checksum_of(path)) {
  const SafetensorsFile file(path);
  blaming(path, [&] {
    if (file.metadata("format") != kFormat)
      fail("expected a data set of format ", kFormat, ", got '", file.metadata("format"), "'");
    tokenizer_ = file.metadata("tokenizer");
    blaming("labels", [&] {
      const Json labels = parse_json(file.metadata("labels"));
      for (const Json& label : labels.as_array()) labels_.push_back(label.is_string() ? label.as_string() : label.dump());
    });
    blaming("candidate_tokens", [&] {
      const Json tokens = parse_json(file.metadata("candidate_tokens"));
      if (!tokens.is_null()) candidate_tokens_ = tokens.as_ints();
    });
    if (candidate_tokens_ && candidate_tokens_->size() != labels_.size())
      fail("expected one candidate token for each of ", labels_.size(), " labels, got ", candidate_tokens_->size());
    for (const char* name : kSplits)
      if (file.has(std::string(name) + ".tokens")) splits_[name] = read_split(file, name);
    if (file.has("train.order")) order_ = file.read<int32_t>("train.order");
  });
}

const Split& Dataset::split(const std::string& name) const {
  const auto found = splits_.find(name);
  if (found == splits_.end() || found->second.rows() == 0) fail(path_, ": the data set has no rows for ", name);
  return found->second;
}

std::vector<int64_t> Dataset::training_rows(int64_t step, int64_t batch_size) const {
  const uint64_t first = static_cast<uint64_t>(step) * static_cast<uint64_t>(batch_size);
  std::vector<int64_t> rows;
  for (uint64_t i = 0; i < static_cast<uint64_t>(batch_size); ++i) rows.push_back(order_[(first + i) % order_.size()]);
  return rows;
}

void Dataset::check(const Description& description) const {
  blaming(path_, [&] {
    if (description.tokenizer && *description.tokenizer != tokenizer_)
      fail("the data set is of another tokenizer: the program expects ", *description.tokenizer, ", got '", tokenizer_, "'");
    if (description.candidate_tokens && description.candidate_tokens != candidate_tokens_) {
      const std::string got = candidate_tokens_ ? Json::list(*candidate_tokens_).dump() : "none";
      fail("candidate_tokens must be those of the program, ", Json::list(*description.candidate_tokens).dump(), ", got ", got);
    }
    for (const auto& [name, split] : splits_)
      for (int64_t row = 0; row < split.rows(); ++row) check_row(split, row, description);
    const auto rows = splits_.count("train") ? splits_.at("train").rows() : 0;
    if (rows > 0 && order_.empty()) fail("train.order must name at least one row");
    for (const int64_t row : order_)
      if (row < 0 || row >= rows) fail("train.order must name rows from 0 to ", rows - 1, ", got ", row);
  });
}

void Dataset::check_row(const Split& split, int64_t row, const Description& description) const {
  const int64_t length = split.length(row), targets = split.targets[static_cast<size_t>(row)];
  const int64_t label = split.labels[static_cast<size_t>(row)];
  blaming(message("row ", row, " of ", split.name), [&] {
    if (length - 1 > description.max_length)
      fail("expected at most ", description.max_length, " tokens before the last, got ", length - 1);
    if (targets > description.targets_per_row)
      fail("expected at most ", description.targets_per_row, " tokens to predict, got ", targets);
    for (int64_t i = 0; i < length; ++i)
      if (split.token(row, i) < 0 || split.token(row, i) >= description.vocabulary)
        fail("token ", split.token(row, i), " is not in the vocabulary of ", description.vocabulary);
    if (label < -1 || label >= static_cast<int64_t>(labels_.size()))
      fail("its label must be -1 or below ", labels_.size(), ", got ", label);
    if (!description.candidate_tokens) return;
    const std::vector<int64_t>& candidates = *description.candidate_tokens;
    for (int64_t i = -targets; i < 0; ++i)
      if (std::find(candidates.begin(), candidates.end(), split.token(row, i)) == candidates.end())
        fail("token ", split.token(row, i), " is to be predicted and is not a candidate");
    if (label >= 0 && candidates[static_cast<size_t>(label)] != split.token(row, -1))
      fail("its last token, ", split.token(row, -1), ", is not that of its label ", label);
  });
}

Batch make_batch(const Split& split, const std::vector<int64_t>& rows, const Description& description) {
  int64_t longest = 0;
  for (const int64_t row : rows) longest = std::max(longest, split.length(row) - 1);
  Batch batch{};
  batch.rows = static_cast<int64_t>(rows.size());
  batch.length = description.padded_length(longest);
  batch.targets_per_row = description.targets_per_row;
  for (const int64_t row : rows) {
    const int64_t tokens = split.length(row) - 1, padding = batch.length - tokens;
    batch.input_ids.insert(batch.input_ids.end(), static_cast<size_t>(padding), description.pad_token);
    batch.attention_mask.insert(batch.attention_mask.end(), static_cast<size_t>(padding), 0);
    for (int64_t i = 0; i < tokens; ++i) batch.input_ids.push_back(split.token(row, i));
    batch.attention_mask.insert(batch.attention_mask.end(), static_cast<size_t>(tokens), 1);
    const int64_t targets = split.targets[static_cast<size_t>(row)];
    for (int64_t k = 0; k < batch.targets_per_row; ++k) {
      batch.target_positions.push_back(k < targets ? batch.length - targets + k : 0);
      batch.target_ids.push_back(k < targets ? split.token(row, k - targets) : kNoTarget);
    }
  }
  return batch;
}

}  // namespace mobizo::trainer
