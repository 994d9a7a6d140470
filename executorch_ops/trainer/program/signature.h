// The methods of a training program as its description promises them, and the proof that it has them.
#pragma once

#include <executorch/runtime/core/exec_aten/exec_aten.h>
#include <executorch/runtime/executor/method_meta.h>

#include <cstdint>
#include <string>
#include <vector>

#include "description.h"

namespace mobizo::trainer {

struct TensorType {
  executorch::aten::ScalarType dtype;
  std::vector<int64_t> shape;  // of what may vary, the largest
};

struct Signature {
  const char* method;
  std::vector<TensorType> inputs, outputs;
};

// The signature of every method that the trainer calls; docs/executorch.md has the table.
std::vector<Signature> signatures(const Description& description);

// Throws Error, with `where` in front, unless the method takes and gives exactly these tensors. What is then made for a call is
// no larger than the program itself has planned for.
void check_signature(const Signature& signature, const executorch::runtime::MethodMeta& meta, const std::string& where);

}  // namespace mobizo::trainer
