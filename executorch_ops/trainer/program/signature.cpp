#include "signature.h"

#include <executorch/runtime/core/exec_aten/util/scalar_type_util.h>

#include "../files/errors.h"
#include "../files/safetensors.h"
#include "inputs.h"

namespace mobizo::trainer {
namespace {

using executorch::aten::ScalarType;

std::string type_text(ScalarType dtype, const std::vector<int64_t>& shape) {
  return std::string(executorch::runtime::toString(dtype)) + " of shape " + shape_text(shape);
}

void check_tensor(const TensorType& expected, const executorch::runtime::Result<executorch::runtime::TensorInfo>& info,
                  const std::string& where) {
  const std::string text = type_text(expected.dtype, expected.shape);
  if (!info.ok()) fail(where, " must be ", text, ", got no tensor");
  const std::vector<int64_t> shape(info->sizes().begin(), info->sizes().end());
  if (info->scalar_type() != expected.dtype || shape != expected.shape)
    fail(where, " must be ", text, " by the description, got ", type_text(info->scalar_type(), shape));
}

std::vector<TensorType> types_of(const std::vector<MethodInput>& inputs) {
  std::vector<TensorType> types;
  for (const MethodInput& input : inputs)
    types.push_back({input.dtype == "int64" ? ScalarType::Long : ScalarType::Float, input.shape});
  return types;
}

// Of a program that writes.
Signature writing_signature(const Description& d) {
  const int64_t length = d.generation->chunk;
  const TensorType tokens{ScalarType::Long, {1, length}};
  Signature method{"next_logits", {tokens, tokens, {ScalarType::Long, {d.generation->context}}}, {}};
  if (d.invocation_tokens) method.inputs.push_back({ScalarType::Float, {1, length, 1}});
  if (d.delegated)
    for (const AdapterParameter& parameter : d.adapter.parameters)
      method.inputs.push_back({ScalarType::Float, parameter.lora_b});
  method.outputs = {{ScalarType::Float, {1, d.vocabulary}}};
  if (d.head) method.outputs.push_back({ScalarType::Float, {1, d.head->shape[1] + d.classes()}});
  return method;
}

std::vector<Signature> training_signatures(const Description& d) {
  const auto ints = [](std::vector<int64_t> shape) { return TensorType{ScalarType::Long, std::move(shape)}; };
  const auto floats = [](std::vector<int64_t> shape) { return TensorType{ScalarType::Float, std::move(shape)}; };
  const auto batch = [&](int64_t rows) {
    const TensorType tokens = ints({rows, d.max_length});
    return std::vector<TensorType>{tokens, tokens, ints({rows, d.targets_per_row})};
  };
  Signature get{"get_adapter", {}, {}}, set{"set_adapter", {}, {floats({1})}};
  for (const AdapterParameter& parameter : d.adapter.parameters) get.outputs.push_back(floats(parameter.lora_a));
  for (const AdapterParameter& parameter : d.adapter.parameters) {
    get.outputs.push_back(floats(parameter.lora_b));
    set.inputs.push_back(floats(parameter.lora_b));
  }
  if (d.head && d.head->rank > 0)
    get.outputs.insert(get.outputs.end(), {floats({d.head->rank, d.head->shape[1]}), floats({d.classes(), d.head->rank})});
  Signature step{"train_step", batch(d.batch_size), {floats({d.groups})}};
  Signature evaluate{"evaluate", batch(d.evaluation_rows), {floats({d.evaluation_rows, d.targets_per_row, d.classes()})}};
  if (d.head) evaluate.outputs.push_back(floats({d.evaluation_rows, d.targets_per_row, d.head->shape[1] + d.classes()}));
  if (d.delegated) {
    step.inputs = types_of(train_step_inputs(d));
    evaluate.inputs = types_of(evaluate_inputs(d));
    return {step, evaluate, get};
  }
  const UpdateRule& rule = d.optimizer;
  const std::vector<TensorType> directions{ints({d.queries}), floats({d.queries})};
  step.inputs.insert(step.inputs.end(), {ints({d.batch_size, d.targets_per_row}), ints({d.groups}), floats({d.groups})});
  if (rule.plain()) {
    step.inputs.insert(step.inputs.end(), directions.begin(), directions.end());
    step.outputs.push_back(floats({1}));
  }
  if (d.head) {
    step.inputs.push_back(floats({d.classes(), d.head->shape[1]}));
    evaluate.inputs.push_back(step.inputs.back());
  }
  Signature update{"update", directions, {floats({1})}};
  update.inputs.insert(update.inputs.end(), size_t{rule.takes_rate()} + size_t{rule.weight_decay > 0}, floats({1}));
  return {step, evaluate, update, get, set};
}

}  // namespace

std::vector<Signature> signatures(const Description& description) {
  std::vector<Signature> found = training_signatures(description);
  if (description.generation) found.push_back(writing_signature(description));
  return found;
}

void check_signature(const Signature& signature, const executorch::runtime::MethodMeta& meta, const std::string& where) {
  const size_t inputs = signature.inputs.size(), outputs = signature.outputs.size();
  if (meta.num_inputs() != inputs || meta.num_outputs() != outputs)
    fail(where, " must have ", inputs, " inputs and ", outputs, " outputs, got ", meta.num_inputs(), " and ",
         meta.num_outputs());
  for (size_t i = 0; i < inputs; ++i)
    check_tensor(signature.inputs[i], meta.input_tensor_meta(i), message(where, ": input ", i));
  for (size_t i = 0; i < outputs; ++i)
    check_tensor(signature.outputs[i], meta.output_tensor_meta(i), message(where, ": output ", i));
}

}  // namespace mobizo::trainer
