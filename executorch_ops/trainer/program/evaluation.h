// How well the unperturbed model of a program does on held-out rows.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "program.h"

namespace mobizo::trainer {

struct Evaluation {
  int64_t rows, classes;
  double loss;                     // mean cross-entropy over the tokens to be predicted
  double accuracy;                 // share of rows whose last token has the highest score
  double balanced_accuracy;        // mean over the labels of the accuracy on the rows of each; NaN if a row has no label, or a
                                   // label that a candidate token stands for no row
  std::vector<double> row_losses;  // [rows], each the sum over its tokens to be predicted
  std::vector<float> scores;       // of the last token of each row, [rows, classes]; empty unless asked for
};

// Scores the first `rows` rows of a split, all of them if it is 0 or more than there are. before_forward is called before each
// forward; what it throws ends the evaluation.
Evaluation evaluate(
    Program& program, const Split& split, int64_t rows, bool keep_scores = false,
    const std::function<void()>& before_forward = [] {});

}  // namespace mobizo::trainer
