// The inputs of the methods of a delegated program, which whoever runs it has to know in their order.
// mobizo_kernels/executorch/inputs.py is the twin in Python: the same inputs, checks and sentences.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../files/json.h"

namespace mobizo::trainer {

struct Description;

struct MethodInput {
  std::string name;            // of the argument; a factor of an adapter has its parameter's behind a colon
  std::string dtype;           // int64 or float32
  std::vector<int64_t> shape;  // of what may vary, the largest
};

std::vector<MethodInput> train_step_inputs(const Description& description);
std::vector<MethodInput> evaluate_inputs(const Description& description);

// Throws Error, naming the first that differs, unless the member "inputs" of a description promises these.
void check_inputs(const Json& inputs, const Description& description);

}  // namespace mobizo::trainer
