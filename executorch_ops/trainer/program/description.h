// What a training program says of itself: the JSON that its method mobizo_description returns.
// mobizo_kernels/executorch/description.py is the twin in Python: the same fields, checks and sentences.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../files/json.h"
#include "../files/update_rule.h"
#include "texts.h"

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

// The LM head of a program that can hold a readout: a LoRA of its rows of the candidate tokens, which runs do not tune.
struct HeadDescription {
  std::string name;            // of its weight
  std::vector<int64_t> shape;  // (out, in)
  double scale, soft_cap;      // what the model makes of its outputs, see AfterHead; no cap is 0
  int64_t rank;                // of the adapter with which the program begins; 0 for none
  std::string pattern;         // of PEFT's, for its rank and alpha
  Json target_modules;         // PEFT's with the head among them
};

// Of a program that writes: it has the method next_logits.
struct GenerationDescription {
  int64_t context, chunk;            // most tokens of a prompt and its answer, and of one call of next_logits
  std::vector<int64_t> stop_tokens;  // each ends an answer
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
  // Its rows [classes, in] to be added are the last input of train_step and evaluate.
  std::optional<HeadDescription> head;
  // How texts become its rows; none of a program that takes tokens alone.
  std::optional<TextsDescription> texts;
  std::optional<GenerationDescription> generation;

  // C, columns of the logits.
  int64_t classes() const { return candidate_tokens ? static_cast<int64_t>(candidate_tokens->size()) : vocabulary; }
  // The columns T that inputs take of which up to `before` tokens come before the tail.
  int64_t columns(int64_t before) const;
};

// Throws Error, naming the field, if one is missing, unknown, of the wrong type, or contradicts the rest.
Description parse_description(const std::string& text);

}  // namespace mobizo::trainer
