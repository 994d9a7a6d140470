#include "tokenized.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "../files/checksum.h"
#include "../files/crc32.h"
#include "../files/errors.h"
#include "order.h"
#include "prompt.h"
#include "python_json.h"
#include "splits.h"
#include "strings.h"
#include "text_file.h"

namespace mobizo::trainer {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 26;  // of the order of training

struct Encoded {
  std::vector<Row> train, validation, test;
};

template <typename T>
std::vector<T> first_of(std::vector<T> rows, std::optional<int64_t> most) {
  if (most && *most < static_cast<int64_t>(rows.size())) rows.resize(static_cast<size_t>(*most));
  return rows;
}

// Which label of a split its first `rows` are without; "" if they have all.
std::string lack(const std::vector<Example>& part, size_t rows) {
  std::map<std::string, size_t> first;
  for (size_t i = 0; i < part.size(); ++i) first.emplace(part[i].label, i);
  std::string missing;
  size_t last = 0;
  for (const auto& [label, index] : first) {
    last = std::max(last, index);
    if (index >= rows) missing += (missing.empty() ? "" : ", ") + quoted(label);
  }
  if (missing.empty()) return "";
  return message("expected at least ", last + 1, ", to have rows of every label, got ", rows, " without any of ", missing);
}

std::vector<Row> encoded(const PromptEncoder& encoder, const std::vector<Example>& examples) {
  std::vector<Row> rows;
  for (const Example& example : examples) rows.push_back(encoder.encode(example));
  return rows;
}

Encoded labelled(const std::string& path, const PromptEncoder& encoder, const TextOptions& options,
                 std::vector<std::string>& warnings) {
  const Splits<Example> all =
      split_examples(read_examples(path, options.text_column, options.label_column, encoder.columns()), warnings);
  encoder.check_labels(labels_of(all.test));
  const std::vector<Example> train = first_of(all.train, options.train_rows),
                             validation = first_of(all.validation, options.validation_rows),
                             test = first_of(all.test, options.eval_rows);
  if (const std::string text = lack(all.train, train.size()); !text.empty()) fail("train_rows: ", text);
  if (const std::string text = lack(all.validation, validation.size()); !text.empty()) fail("validation_rows: ", text);
  if (const std::string text = lack(all.test, test.size()); !text.empty())
    warnings.push_back("eval_rows: " + text + "; there is no balanced accuracy or AUC of these");
  return {encoded(encoder, train), encoded(encoder, validation), encoded(encoder, test)};
}

std::vector<Row> encoded(const ChatEncoder& encoder, const std::vector<Conversation>& rows, const TextOptions& options,
                         int64_t max_length, const Description& description) {
  for (const Conversation& row : rows) encoder.check(row.messages, row.where);
  std::vector<Row> found;
  for (const Conversation& row : rows)
    for (size_t last = 0; last < row.messages.size(); ++last) {
      if (row.messages[last].role != "assistant" || (options.answers == "last" && last + 1 < row.messages.size())) continue;
      const std::vector<Message> said(row.messages.begin(), row.messages.begin() + static_cast<std::ptrdiff_t>(last) + 1);
      found.push_back(encoder.row(said, max_length, row.where));
      blaming("data: " + row.where, [&] { check_fit(found.back().tokens, found.back().targets, description); });
    }
  return found;
}

Encoded answered(const std::string& path, const ChatEncoder& encoder, const TextOptions& options, int64_t max_length,
                 const Description& description) {
  const Splits<Conversation> all = split_conversations(read_conversations(path));
  const auto rows_of = [&](const std::vector<Conversation>& part, std::optional<int64_t> most) {
    return encoded(encoder, first_of(part, most), options, max_length, description);
  };
  return {rows_of(all.train, options.train_rows), rows_of(all.validation, options.validation_rows),
          rows_of(all.test, options.eval_rows)};
}

Split split_of(const std::string& name, const std::vector<Row>& rows) {
  Split split;
  split.name = name;
  split.offsets.push_back(0);
  for (const Row& row : rows) {
    for (const int64_t token : row.tokens) split.tokens.push_back(static_cast<int32_t>(token));
    split.offsets.push_back(static_cast<int64_t>(split.tokens.size()));
    split.targets.push_back(static_cast<int32_t>(row.targets));
    split.labels.push_back(static_cast<int32_t>(row.label));
  }
  return split;
}

// A column as safetensors files hold it.
struct Column {
  std::string dtype;
  size_t count;
  std::string_view bytes;
};

template <typename T>
Column column_of(const std::vector<T>& values) {
  return {
      sizeof(T) == 8 ? "I64" : "I32", values.size(), {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)}};
}

std::map<std::string, Column> columns_of(const DatasetContent& content) {
  std::map<std::string, Column> columns;
  for (const auto& [name, split] : content.splits) {
    columns[name + ".tokens"] = column_of(split.tokens);
    columns[name + ".offsets"] = column_of(split.offsets);
    columns[name + ".targets"] = column_of(split.targets);
    columns[name + ".labels"] = column_of(split.labels);
  }
  columns["train.order"] = column_of(content.order);
  if (!content.in_turn.empty()) columns["train.in_turn"] = column_of(content.in_turn);
  return columns;
}

std::string content_checksum(const std::map<std::string, std::string>& metadata, const std::map<std::string, Column>& columns) {
  uint32_t crc = 0;
  const auto add = [&](const std::string& text) { crc = crc32(text.c_str(), text.size() + 1, crc); };
  for (const auto& [name, value] : metadata) add(name), add(value);
  for (const auto& [name, column] : columns) {
    add(name), add(column.dtype), add(std::to_string(column.count));
    crc = crc32(column.bytes.data(), column.bytes.size(), crc);
  }
  return hex(crc);
}

std::string file_bytes(const DatasetContent& content, const std::string& template_text, const std::string& source) {
  const std::map<std::string, Column> columns = columns_of(content);
  std::map<std::string, std::string> metadata{
      {"format", kDatasetFormat},
      {"tokenizer", content.tokenizer},
      {"labels", python_json(Json::list(content.labels), {})},
      {"candidate_tokens", content.candidate_tokens ? python_json(Json::list(*content.candidate_tokens), {}) : "null"},
      {"template", template_text},
      {"source", source}};
  metadata["checksum"] = content_checksum(metadata, columns);
  Json::Object strings, header;
  for (const auto& [name, value] : metadata) strings.emplace_back(name, value);
  header.emplace_back("__metadata__", std::move(strings));
  std::string data;
  for (const char* dtype : {"I64", "I32"})  // the widest first, as the safetensors library has them
    for (const auto& [name, column] : columns) {
      if (column.dtype != dtype) continue;
      Json::Object entry;
      entry.emplace_back("dtype", column.dtype);
      entry.emplace_back("shape", Json::Array{static_cast<int64_t>(column.count)});
      entry.emplace_back("data_offsets", Json::Array{static_cast<int64_t>(data.size()),
                                                     static_cast<int64_t>(data.size() + column.bytes.size())});
      header.emplace_back(name, std::move(entry));
      data += column.bytes;
    }
  std::string text = python_json(std::move(header), {false, false, false});
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text + data;
}

}  // namespace

bool is_text_file(const std::string& path) {
  const std::string suffix = suffix_of(path);
  return suffix == ".csv" || suffix == ".jsonl";
}

TokenizedTexts tokenized(const std::string& path, const Description& description, const TextOptions& options) {
  const TokenizerFile file(options.tokenizer);
  file.check(description);
  const int64_t max_length = options.max_length.value_or(description.max_length);
  TokenizedTexts made;
  Encoded rows;
  std::string template_text;
  DatasetContent& content = made.content;
  if (description.candidate_tokens) {
    const PromptEncoder encoder(description, file, max_length);
    rows = labelled(path, encoder, options, made.warnings);
    content.labels = description.texts->prompt->labels;
    template_text = description.texts->prompt->template_text;
  } else {
    const ChatEncoder encoder(description, file.tokenizer());
    rows = answered(path, encoder, options, max_length, description);
  }
  if (options.batch_size > 0 && options.steps > kMostRows / options.batch_size)
    fail("steps: a data set file holds the batches of ", kMostRows / options.batch_size, " steps of ", options.batch_size,
         " rows, got ", options.steps);
  content.order = training_order(rows.train, options.batch_size, options.seed, options.steps);
  if (description.candidate_tokens) content.in_turn = numbers_in_turn(rows.train, options.seed);
  content.candidate_tokens = description.candidate_tokens;
  content.tokenizer = *description.tokenizer;
  content.splits["train"] = split_of("train", rows.train);
  content.splits["validation"] = split_of("validation", rows.validation);
  content.splits["test"] = split_of("test", rows.test);
  made.bytes = file_bytes(content, template_text, path);
  content.checksum = hex(crc32(made.bytes.data(), made.bytes.size(), 0));
  return made;
}

}  // namespace mobizo::trainer
