// Checked kernel arguments for the ops that update a parameter.
#pragma once

#include "checks.h"

namespace mobizo {

// Everything but `param`, which the caller sets once nothing can fail any more.
PerturbArgs perturb_args(const Tensor& param, const Directions& directions, int64_t stream, double decay,
                         const std::string& distribution, const char* op, const char* argument);

}  // namespace mobizo
