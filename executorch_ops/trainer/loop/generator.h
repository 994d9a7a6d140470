// Writes with a program: the tokens that follow a prompt, by the adapter as it is now.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../program/program.h"
#include "sampling.h"

namespace mobizo::trainer {

struct GenerateOptions {
  int64_t max_new_tokens = 64;  // most tokens of an answer, the one that ends it included
  Sampling sampling;
  std::vector<int64_t> among = {};  // tokens to choose from; all if there are none
};

// Throws Error, naming the option, if one is out of its range.
void check_options(const GenerateOptions& options);

struct Generated {
  std::vector<int64_t> tokens;
  // "stop": the last token is one that ends an answer; "length": as many as asked for; "context": the program has no room for
  // more; "caller": whoever is told of each token wanted no more.
  std::string ended;
  int64_t reused, prefilled;               // of the prompt's tokens, from the cache and not
  double prefill_seconds, decode_seconds;  // until the first token, and for the others
};

// Told of each token as it is chosen; false ends the answer with it.
using OnToken = std::function<bool(int64_t)>;
// Called before each forward: of a chunk of the prompt, of a token. What it throws ends the call; what was computed is kept.
using BeforeForward = std::function<void()>;

// What a prompt has in common with the text before it is not computed again: a conversation that goes on costs its new turns.
// If the adapter has changed, that ends where adapters acted. The program has to outlive it, and nobody else may write with it
// meanwhile.
class Generator {
 public:
  // Throws Error if the program was exported without a context.
  explicit Generator(Program& program);

  // With invocation tokens (Activated LoRA) the adapters act from their last occurrence in the prompt on; they are off without
  // one, as in PEFT. Throws Error if the prompt is empty, too long, or has a token that is none of the vocabulary.
  Generated generate(
      const std::vector<int64_t>& prompt, const GenerateOptions& options, const OnToken& on_token = {},
      const BeforeForward& before_forward = [] {});
  // Throws Error for what generate() refuses before it computes anything; with `whole` also if there is no room for an answer
  // of max_new_tokens.
  void check(const std::vector<int64_t>& prompt, const GenerateOptions& options, bool whole = false) const;
  // Whether the adapters act in an answer to this prompt.
  bool acts(const std::vector<int64_t>& prompt) const;

 private:
  // The logits behind the text, of which the cache has what it holds already.
  std::vector<float> forward(const std::vector<std::pair<int64_t, float>>& text, const BeforeForward& before_forward);

  Program& program_;
  std::vector<std::pair<int64_t, float>> cached_;  // tokens, and whether the adapters acted on them
  int64_t changes_ = 0;                            // of the adapter, when they went in
};

}  // namespace mobizo::trainer
