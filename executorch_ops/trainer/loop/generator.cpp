#include "generator.h"

#include <algorithm>
#include <chrono>

#include "../files/errors.h"

namespace mobizo::trainer {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Where the last occurrence of `wanted` begins; the size of the text if there is none.
size_t last_occurrence(const std::vector<int64_t>& text, const std::vector<int64_t>& wanted) {
  const auto found = std::find_end(text.begin(), text.end(), wanted.begin(), wanted.end());
  return static_cast<size_t>(found - text.begin());
}

// Token n of an answer.
int64_t chosen(const std::vector<float>& logits, const GenerateOptions& options, int64_t n) {
  const double uniform = uniform_of(options.sampling.seed, n);
  if (options.among.empty()) return choose(logits, options.sampling, uniform);
  std::vector<float> of_those;
  for (const int64_t token : options.among) of_those.push_back(logits[static_cast<size_t>(token)]);
  return options.among[static_cast<size_t>(choose(of_those, options.sampling, uniform))];
}

}  // namespace

void check_options(const GenerateOptions& options) {
  check_sampling(options.sampling);
  if (options.max_new_tokens < 1) fail("max_new_tokens must be at least 1, got ", options.max_new_tokens);
}

Generator::Generator(Program& program) : program_(program) {
  if (!program.description().generation)
    fail(program.path(), ": the program cannot write: it was exported without a context (mobizo export --context N)");
}

bool Generator::acts(const std::vector<int64_t>& prompt) const {
  const auto& invocation = program_.description().invocation_tokens;
  return !invocation || last_occurrence(prompt, *invocation) < prompt.size();
}

void Generator::check(const std::vector<int64_t>& prompt, const GenerateOptions& options, bool whole) const {
  const Description& d = program_.description();
  check_options(options);
  if (prompt.empty()) fail("the prompt must have at least one token");
  const auto tokens = static_cast<int64_t>(prompt.size());
  if (tokens >= d.generation->context)
    fail("the prompt has ", tokens, " tokens, and ", d.generation->context - 1, " fit: the program's context of ",
         d.generation->context, " holds the answer, too");
  if (whole && options.max_new_tokens > d.generation->context - tokens)
    fail("the prompt has ", tokens, " tokens, and with an answer of ", options.max_new_tokens,
         " it does not fit the program's context of ", d.generation->context);
  for (const int64_t token : prompt)
    if (token < 0 || token >= d.vocabulary)
      fail("the prompt must have tokens from 0 to ", d.vocabulary - 1, ", got ", token, ": is the tokenizer the program's?");
}

std::vector<float> Generator::forward(const std::vector<std::pair<int64_t, float>>& text, const BeforeForward& before_forward) {
  const auto chunk = static_cast<size_t>(program_.description().generation->chunk);
  std::vector<float> logits;
  for (size_t at = cached_.size(); at < text.size(); at = cached_.size()) {
    const size_t count = std::min(chunk, text.size() - at);
    std::vector<int64_t> tokens;
    std::vector<float> active;
    for (size_t i = at; i < at + count; ++i) {
      tokens.push_back(text[i].first);
      active.push_back(text[i].second);
    }
    before_forward();
    logits = program_.next_logits(tokens, active, static_cast<int64_t>(at));
    cached_.insert(cached_.end(), text.begin() + static_cast<std::ptrdiff_t>(at),
                   text.begin() + static_cast<std::ptrdiff_t>(at + count));
  }
  return logits;
}

Generated Generator::generate(const std::vector<int64_t>& prompt, const GenerateOptions& options, const OnToken& on_token,
                              const BeforeForward& before_forward) {
  check(prompt, options);
  const GenerationDescription& d = *program_.description().generation;
  const auto& invocation = program_.description().invocation_tokens;
  const size_t start = invocation ? last_occurrence(prompt, *invocation) : 0;
  std::vector<std::pair<int64_t, float>> text;
  for (size_t i = 0; i < prompt.size(); ++i) text.emplace_back(prompt[i], i >= start ? 1.0f : 0.0f);
  const float active = text.back().second;

  if (changes_ != program_.changes())
    cached_.erase(std::find_if(cached_.begin(), cached_.end(), [](const auto& token) { return token.second != 0; }),
                  cached_.end());
  changes_ = program_.changes();
  const auto different = std::mismatch(cached_.begin(), cached_.end(), text.begin(), text.end()).first;
  // The last token of the prompt is computed in any case, for the logits behind it.
  cached_.resize(std::min(static_cast<size_t>(different - cached_.begin()), text.size() - 1));

  Generated result{};
  result.reused = static_cast<int64_t>(cached_.size());
  result.prefilled = static_cast<int64_t>(text.size()) - result.reused;
  auto begun = Clock::now();
  std::vector<float> logits = forward(text, before_forward);
  result.prefill_seconds = seconds_since(begun);
  begun = Clock::now();
  for (int64_t n = 0;; ++n) {
    const int64_t token = chosen(logits, options, n);
    result.tokens.push_back(token);
    text.emplace_back(token, active);
    const bool goes_on = !on_token || on_token(token);
    if (std::find(d.stop_tokens.begin(), d.stop_tokens.end(), token) != d.stop_tokens.end())
      result.ended = "stop";
    else if (!goes_on)
      result.ended = "caller";
    else if (n + 1 == options.max_new_tokens)
      result.ended = "length";
    else if (static_cast<int64_t>(text.size()) == d.context)
      result.ended = "context";
    if (!result.ended.empty()) break;
    logits = forward(text, before_forward);
  }
  result.decode_seconds = seconds_since(begun);
  return result;
}

}  // namespace mobizo::trainer
