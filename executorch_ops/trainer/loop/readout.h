// The closed-form start: a logistic regression on last hidden states, as an adapter of the LM head.
// mobizo_kernels/training/readout.py is the twin in Python.
#pragma once

#include <loop/run_defaults.h>  // generated

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "../program/program.h"

namespace mobizo::trainer {

struct Readout {
  std::optional<double> ridge;  // that validated best, in units of the scaled states' mean square; none if the model as it was
                                // did, and the head got no adapter
  int64_t rank;                 // of the head's adapter, 0 without one
  std::vector<std::pair<std::optional<double>, double>>
      losses;      // validation loss by ridge; of none, that of the model as it was
  int64_t rows;    // that it was made of
  double seconds;  // that it took
};

// Forwards each of the first `rows` rows in turn of the training split, and of the first `validation_rows` of the validation
// split, once, and gives the head the adapter that they ask for. Throws Error, with the program as it was, if it cannot hold a
// readout or its head has an adapter, a label has no rows, a row has several targets, or a state is not finite. before_forward
// is called before each forward; what it throws leaves the program as it was, too.
Readout read_out(
    Program& program, const Dataset& dataset, int64_t rows = run_defaults::readout_rows,
    int64_t validation_rows = run_defaults::validation_rows, const std::function<void()>& before_forward = [] {});

}  // namespace mobizo::trainer
