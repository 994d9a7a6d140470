#include "objective.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "../files/errors.h"
#include "../files/json.h"
#include "../files/utf8.h"
#include "../program/perturbation.h"
#include "seeds.h"

namespace mobizo::trainer {
namespace {

std::pair<Tokens, Tokens> prompt_and_reference(const Split& split, int64_t row) {
  const auto first = split.tokens.begin() + static_cast<std::ptrdiff_t>(split.offsets[static_cast<size_t>(row)]);
  const auto end = first + static_cast<std::ptrdiff_t>(split.length(row));
  const auto answer = end - static_cast<std::ptrdiff_t>(split.targets[static_cast<size_t>(row)]);
  return {{first, answer}, {answer, end}};
}

}  // namespace

Objective::Objective(std::string name, Generator& generator, GenerateOptions writing, Reward reward, bool validates)
    : name_(std::move(name)),
      generator_(generator),
      writing_(std::move(writing)),
      reward_(std::move(reward)),
      validates_(validates) {
  if (name_.empty()) fail("the name of an objective must not be empty");
  if (utf8_valid_bytes(name_) != name_.size()) fail("the name of an objective must be UTF-8");  // as journals are
  check_options(writing_);
}

std::string Objective::text() const {
  const Sampling& s = writing_.sampling;
  std::string text = message(name_, " ", writing_.max_new_tokens);
  // All digits: a run does not go on at another temperature, however near.
  if (s.temperature != 0)
    text += message(" ", Json(s.temperature).dump(), " ", s.top_k, " ", Json(s.top_p).dump(), " ", s.seed);
  return text;
}

void Objective::check(const Split& split, int64_t rows) const {
  for (int64_t row = 0; row < std::min(rows, split.rows()); ++row) {
    const auto texts = prompt_and_reference(split, row);
    blaming(message("row ", row, " of ", split.name), [&] {
      generator_.check(texts.first, writing_, /*whole=*/true);
      if (const size_t tokens = texts.second.size(); !writing_.among.empty() && tokens != 1)
        fail("the accuracy of labels needs answers of one token, got one of ", tokens);
    });
  }
}

std::vector<float> Objective::losses(Program& program, const Split& split, const std::vector<int64_t>& rows, int64_t step,
                                     const Groups& groups, const BeforeForward& before_forward) const {
  std::vector<double> sums(groups.seeds.size());
  const int64_t step_seed = query_seed(writing_.sampling.seed, step);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto [prompt, reference] = prompt_and_reference(split, rows[i]);
    std::vector<Tokens> answers;
    // Row by row: what comes before the adapters act is then in the cache for all groups but the first.
    for (size_t group = 0; group < sums.size(); ++group) {
      const Perturbation perturbed(program, groups.seeds[group], groups.coeffs[group]);
      answers.push_back(answer(prompt, query_seed(step_seed, static_cast<int64_t>(i)), before_forward));
    }
    const std::vector<double> given = rewards(prompt, answers, reference);
    std::transform(sums.begin(), sums.end(), given.begin(), sums.begin(), std::plus<>());
  }
  std::vector<float> losses;
  for (const double sum : sums) losses.push_back(static_cast<float>(1 - sum / static_cast<double>(rows.size())));
  return losses;
}

std::vector<double> Objective::held_out(const Split& split, int64_t rows, const BeforeForward& before_forward) const {
  std::vector<double> losses;
  for (int64_t row = 0; row < std::min(rows, split.rows()); ++row) {
    const auto [prompt, reference] = prompt_and_reference(split, row);
    const Tokens written = answer(prompt, query_seed(writing_.sampling.seed, row), before_forward);
    losses.push_back(1 - rewards(prompt, {written}, reference).front());
  }
  return losses;
}

Tokens Objective::answer(const Tokens& prompt, int64_t seed, const BeforeForward& before_forward) const {
  GenerateOptions options = writing_;
  options.sampling.seed = seed;
  return generator_.generate(prompt, options, {}, before_forward).tokens;
}

std::vector<double> Objective::rewards(const Tokens& prompt, const std::vector<Tokens>& answers,
                                       const Tokens& reference) const {
  std::vector<double> given = reward_(prompt, answers, reference);
  if (given.size() != answers.size())
    fail("the reward must give a number for each of ", answers.size(), " answers, got ", given.size());
  for (const double value : given)
    if (!std::isfinite(static_cast<float>(value))) fail("the reward must give numbers that are finite in float32, got ", value);
  return given;
}

Objective label_accuracy(Program& program, Generator& generator) {
  const auto& candidates = program.description().candidate_tokens;
  if (!candidates) fail(program.path(), ": the accuracy of labels needs a program with candidate tokens");
  GenerateOptions writing;
  writing.max_new_tokens = 1;
  writing.among = *candidates;
  const Reward right = [](const Tokens&, const std::vector<Tokens>& answers, const Tokens& reference) {
    std::vector<double> found;
    for (const Tokens& answer : answers) found.push_back(answer == reference ? 1 : 0);
    return found;
  };
  return {"accuracy", generator, std::move(writing), right, /*validates=*/false};
}

}  // namespace mobizo::trainer
