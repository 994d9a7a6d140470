// What a run minimises in place of the cross-entropy: 1 - the mean reward of what a model writes. Nothing has to have a
// gradient.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../program/dataset.h"
#include "generator.h"

namespace mobizo::trainer {

using Tokens = std::vector<int64_t>;
// How good each of some answers to one prompt is, higher being better, beside the answer of the data set.
using Reward =
    std::function<std::vector<double>(const Tokens& prompt, const std::vector<Tokens>& answers, const Tokens& reference)>;

// The groups of a step, each B + coeffs[g] * z(seeds[g]), [G].
struct Groups {
  std::vector<int64_t> seeds;
  std::vector<float> coeffs;
};

class Objective {
 public:
  // name: by which a journal tells it from others. generator: of the program that is trained. writing: how answers are written;
  // what is drawn at random depends on its seed, the step and the row, and is the same for all groups. validates: whether the
  // rewards of held-out rows say which adapter is kept, not their cross-entropy.
  Objective(std::string name, Generator& generator, GenerateOptions writing, Reward reward, bool validates = true);

  // All that decides on what it gives, but for what the reward does under its name.
  std::string text() const;
  bool validates() const { return validates_; }
  // Throws Error, naming the row, unless there is room for the prompts of the first `rows` rows and for answers to them, and
  // the answer of the data set is one that could be written.
  void check(const Split& split, int64_t rows) const;

  // The loss of each group over some rows, [G], by a program whose adapter is left as it was. Throws Error if a reward is none.
  std::vector<float> losses(Program& program, const Split& split, const std::vector<int64_t>& rows, int64_t step,
                            const Groups& groups, const BeforeForward& before_forward) const;
  // The loss of each of the first rows of a split by the program as it is, [rows].
  std::vector<double> held_out(const Split& split, int64_t rows, const BeforeForward& before_forward) const;

 private:
  std::vector<double> rewards(const Tokens& prompt, const std::vector<Tokens>& answers, const Tokens& reference) const;
  Tokens answer(const Tokens& prompt, int64_t seed, const BeforeForward& before_forward) const;

  std::string name_;
  Generator& generator_;
  GenerateOptions writing_;
  Reward reward_;
  bool validates_;
};

// The accuracy of labels: 1 for the answer of the data set, chosen from the candidate tokens. Held-out rows are scored by their
// cross-entropy. Throws Error if the program has no candidates.
Objective label_accuracy(Program& program, Generator& generator);

}  // namespace mobizo::trainer
