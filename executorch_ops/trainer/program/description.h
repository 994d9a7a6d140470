// What a training program says of itself: the JSON that its method mobizo_description returns.
// mobizo_kernels/executorch/description.py is the twin in Python: the same fields, checks and sentences.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../files/json.h"
#include "../files/update_rule.h"

namespace mobizo::trainer {

struct ModelDescription {
  std::string name, architecture, fingerprint;
};

// A LoRA: x -> scaling * (x A^T) B^T.
struct AdapterParameter {
  std::string name;  // of the weight that it adapts, in the model without adapters
  int64_t stream;
  std::vector<int64_t> lora_a, lora_b;  // shapes, (r, in) and (out, r)
  double scaling;
};

struct AdapterDescription {
  std::string config;  // PEFT's, JSON
  std::vector<AdapterParameter> parameters;
};

struct Description {
  std::string text;  // the JSON itself
  ModelDescription model;
  std::string quantization;
  int64_t queries, batch_size, groups;
  std::string estimator, distribution;
  UpdateRule optimizer;
  int64_t min_length, max_length;  // of the model's input, in tokens
  bool dynamic_length;
  int64_t targets_per_row;
  // Where the adapters act from the last occurrence of these tokens on: they begin in column T - tail_length of every row.
  std::optional<std::vector<int64_t>> invocation_tokens;
  int64_t tail_length;  // 0 without invocation tokens
  std::optional<std::vector<int64_t>> candidate_tokens;
  int64_t vocabulary, pad_token, evaluation_rows;
  std::optional<std::string> tokenizer;  // hash; not checked if there is none
  AdapterDescription adapter;
  // Whether the adapters are stock operators on inputs of the methods (inputs.h), not our ops on buffers of the program.
  bool delegated;

  // C, columns of the logits.
  int64_t classes() const { return candidate_tokens ? static_cast<int64_t>(candidate_tokens->size()) : vocabulary; }
  // The columns T that inputs take of which up to `before` tokens come before the tail.
  int64_t columns(int64_t before) const;
};

// Throws Error, naming the field, if one is missing, unknown, of the wrong type, or contradicts the rest.
Description parse_description(const std::string& text);

}  // namespace mobizo::trainer
