// Data sets: batches against a plain construction, and rows that do not fit.
#pragma once

#include "../../executorch_ops/trainer/program/dataset.h"
#include "trainer_harness.h"

namespace mobizo::trainer {

// Three rows: (10, 11, 5), (12, 9), (10, 11, 12, 13, 9, 5), answers of 1, 1 and 2 tokens.
struct TestDataset {
  std::vector<int32_t> tokens{10, 11, 5, 12, 9, 10, 11, 12, 13, 9, 5};
  std::vector<int64_t> offsets{0, 3, 5, 11};
  std::vector<int32_t> targets{1, 1, 2}, labels{0, 1, 0}, order{2, 0, 1, 0};
  std::string tokenizer = "cafe", candidates = "[5,9]", labels_text = "[\"bad\",\"good\"]";

  std::string write(const Scratch& scratch) const {
    const auto bytes = [](const auto& values) {
      return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof values[0]);
    };
    std::string data;
    Json::Object header{{"__metadata__", Json::Object{{"format", "mobizo-dataset-1"},
                                                      {"tokenizer", tokenizer},
                                                      {"candidate_tokens", candidates},
                                                      {"labels", labels_text}}}};
    const auto add = [&](const std::string& name, const char* dtype, const auto& values) {
      const auto begin = static_cast<int64_t>(data.size());
      data += bytes(values);
      header.emplace_back(name,
                          Json::Object{{"dtype", dtype},
                                       {"shape", Json::list<int64_t>({static_cast<int64_t>(values.size())})},
                                       {"data_offsets", Json::list<int64_t>({begin, static_cast<int64_t>(data.size())})}});
    };
    add("train.tokens", "I32", tokens);
    add("train.offsets", "I64", offsets);
    add("train.targets", "I32", targets);
    add("train.labels", "I32", labels);
    add("train.order", "I32", order);
    for (const std::string split : {"validation", "test"}) {
      for (const char* name : {".tokens", ".targets", ".labels"}) add(split + name, "I32", std::vector<int32_t>{});
      add(split + ".offsets", "I64", std::vector<int64_t>{0});
    }
    const std::string text = Json(header).dump();
    const uint64_t length = text.size();
    return scratch.write("data", std::string(reinterpret_cast<const char*>(&length), 8) + text + data);
  }
};

inline Description test_description() {
  Description d{};
  d.batch_size = 2;
  d.min_length = 2;
  d.max_length = 5;
  d.dynamic_length = true;
  d.targets_per_row = 2;
  d.candidate_tokens = {5, 9};
  d.vocabulary = 20;
  d.pad_token = 1;
  d.tokenizer = "cafe";
  return d;
}

inline void batch_cases(Report& report, const Scratch& scratch) {
  const Dataset dataset(TestDataset().write(scratch));
  Description d = test_description();
  const auto list = [](const std::vector<int64_t>& values) { return Json::list(values).dump(); };
  dataset.check(d);
  check_equal(report, "rows of step 0", list(dataset.training_rows(0, 3)), "[2,0,1]");
  check_equal(report, "rows of step 3", list(dataset.training_rows(3, 3)), "[0,1,0]");
  const Batch batch = make_batch(dataset.split("train"), {0, 2}, d);
  check_equal(report, "input_ids", list(batch.input_ids), "[1,1,1,10,11,10,11,12,13,9]");
  check_equal(report, "attention_mask", list(batch.attention_mask), "[0,0,0,1,1,1,1,1,1,1]");
  check_equal(report, "target_positions", list(batch.target_positions), "[4,0,3,4]");
  check_equal(report, "target_ids", list(batch.target_ids), "[5,-100,9,5]");
  check_equal(report, "a short row is padded to min_length", list(make_batch(dataset.split("train"), {1}, d).input_ids),
              "[1,12]");
  d.dynamic_length = false;
  check_equal(report, "a fixed length", list(make_batch(dataset.split("train"), {1}, d).attention_mask), "[0,0,0,0,1]");
  check_error(report, "a split that is not there", "has no rows for test", [&] { dataset.split("test"); });
}

// The rows with an invocation each: (10, 11, 5), (11, 9), (10, 11, 12, 13, 9, 5).
inline void activate(TestDataset& data, Description& d) {
  data.tokens[3] = 11;
  d.invocation_tokens = {11};
  d.tail_length = 4;
}

inline void activated_cases(Report& report, const Scratch& scratch) {
  TestDataset data;
  Description d = test_description();
  activate(data, d);
  const Dataset dataset(data.write(scratch));
  const auto list = [](const std::vector<int64_t>& values) { return Json::list(values).dump(); };
  dataset.check(d);
  const Batch batch = make_batch(dataset.split("train"), {0, 2, 1}, d);
  check_equal(report, "the last invocation in one column", list(batch.input_ids), "[10,11,1,1,1,10,11,12,13,9,1,11,1,1,1]");
  check_equal(report, "padding on both sides", list(batch.attention_mask), "[1,1,0,0,0,1,1,1,1,1,0,1,0,0,0]");
  check_equal(report, "target_positions of tails", list(batch.target_positions), "[1,0,3,4,1,0]");
  check_equal(report, "without a prefix", list(make_batch(dataset.split("train"), {1}, d).input_ids), "[11,1,1,1]");
}

inline void dataset_cases(Report& report) {
  const Scratch scratch;
  batch_cases(report, scratch);
  activated_cases(report, scratch);
  const auto refused = [&](const std::string& part, const std::function<void(TestDataset&, Description&)>& change) {
    TestDataset data;
    Description d = test_description();
    change(data, d);
    check_error(report, "data set: " + part, part, [&] { Dataset(data.write(scratch)).check(d); });
  };
  refused("of another tokenizer: the program expects cafe, got 'babe'", [](auto& data, auto&) { data.tokenizer = "babe"; });
  refused("candidate_tokens must be those of the program, [9,5], got [5,9]",
          [](auto&, auto& d) { d.candidate_tokens = {9, 5}; });
  refused("row 0 of train: its last token, 5, is not that of its label 0",
          [](auto& data, auto&) { data.candidates = "[9,5]"; });
  refused("a different token for each of at least two labels, got [5,5]", [](auto& data, auto&) { data.candidates = "[5,5]"; });
  refused("labels: expected a string, got a whole number", [](auto& data, auto&) { data.labels_text = "[1, 2]"; });
  refused("row 0 of train: token ids must be from 0, got -1", [](auto& data, auto&) { data.tokens[0] = -1; });
  refused("got none", [](auto& data, auto&) { data.candidates = "null"; });
  refused("labels: not JSON", [](auto& data, auto&) { data.labels_text = ""; });
  refused("row 2 of train: expected at most 4 tokens before the last, got 5", [](auto&, auto& d) { d.max_length = 4; });
  refused("row 2 of train: expected at most 1 tokens to predict, got 2", [](auto&, auto& d) { d.targets_per_row = 1; });
  refused("row 1 of train: expected the invocation tokens [11] before its last token, got none", [](auto& data, auto& d) {
    activate(data, d);
    data.tokens[3] = 12;
  });
  refused("row 2 of train: expected at most 3 tokens from the invocation tokens [11] to", [](auto& data, auto& d) {
    activate(data, d);
    d.tail_length = 3;
  });
  refused("row 0 of train: expected at most 0 tokens before the invocation tokens [11], got 1", [](auto& data, auto& d) {
    activate(data, d);
    d.max_length = 4;
  });
  refused("row 2 of train: expected its 2 tokens to predict after the invocation tokens [9]", [](auto& data, auto& d) {
    activate(data, d);
    data.tokens[1] = data.tokens[3] = 9;
    d.invocation_tokens = {9};
    d.tail_length = 1;
  });
  refused("row 0 of train: token 11 is not in the vocabulary", [](auto&, auto& d) { d.vocabulary = 11; });
  refused("row 1 of train: its label must be -1 or below 2, got 2", [](auto& data, auto&) { data.labels[1] = 2; });
  refused("row 1 of train: its last token, 9, is not that of its label 0", [](auto& data, auto&) { data.labels[1] = 0; });
  refused("token 13 is to be predicted and is not a candidate", [](auto& data, auto&) { data.tokens[9] = 13; });
  refused("train.order must name rows from 0 to 2, got 3", [](auto& data, auto&) { data.order[1] = 3; });
  refused("train.order must name at least one row", [](auto& data, auto&) { data.order.clear(); });
  refused("row 1 of train has 2 tokens and cannot have 2", [](auto& data, auto&) { data.targets[1] = 2; });
  refused("train.offsets must go from 0 to 11", [](auto& data, auto&) { data.offsets[3] = 12; });
  refused("train.offsets must not fall", [](auto& data, auto&) { data.offsets[1] = 8; });
  refused("train.offsets must have 4 elements, got 3", [](auto& data, auto&) { data.offsets.pop_back(); });
  refused("train.labels must have 3 rows", [](auto& data, auto&) { data.labels.push_back(0); });
}

}  // namespace mobizo::trainer
