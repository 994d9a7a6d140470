// A multinomial logistic regression without an intercept on top of logits that are there already: what an LM head's rows get.
// mobizo_kernels/training/logistic.py is the twin in Python: the same objective, ridges and choice among them.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace mobizo::trainer {

// Rows as the LM head sees them.
struct States {
  int64_t rows, width, classes;
  std::vector<float> hidden;    // [rows, width]
  std::vector<float> outputs;   // what the head gives for the classes now, [rows, classes]
  std::vector<int32_t> labels;  // [rows], from 0; each class has some
};

// What a model makes of its head's outputs x: scale * x, and of that soft_cap * tanh(. / soft_cap) unless it is 0.
struct AfterHead {
  double scale = 1, soft_cap = 0;
};

struct Regression {
  std::optional<double> ridge;  // that validated best, in units of the scaled states' mean square; none if nothing added did
  std::vector<double> added;    // to the rows of the head, [classes, width]
  std::vector<std::pair<std::optional<double>, double>> losses;  // on the validation rows, of each ridge that was tried
};

// The rows of each class weigh the same in all. The penalty is on what is added to states whose values are divided by their
// spread in the rows of `train`. The ridges are tried from the strongest on, until three of them did no better.
Regression regress(const States& train, const States& validation, const AfterHead& after);

struct Factors {
  int64_t rank;
  std::vector<float> directions, words;  // [rank, width], its rows orthonormal; [classes, rank]
};

// `added` [classes, width] as the product words * directions, by its singular values. The largest value of a direction is
// positive: so the factors are the same however they were found.
Factors factors(std::vector<double> added, int64_t classes, int64_t width);

}  // namespace mobizo::trainer
