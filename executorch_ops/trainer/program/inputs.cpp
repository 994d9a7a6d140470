#include "inputs.h"

#include "../files/errors.h"
#include "description.h"
#include "members.h"

namespace mobizo::trainer {
namespace {

void add_batch(std::vector<MethodInput>& inputs, const Description& d, int64_t rows) {
  for (const char* name : {"input_ids", "attention_mask"}) inputs.push_back({name, "int64", {rows, d.max_length}});
  inputs.push_back({"target_positions", "int64", {rows, d.targets_per_row}});
}

// One for each parameter: `shape` makes of it the shape of its factor.
template <typename Shape>
void add_factors(std::vector<MethodInput>& inputs, const Description& d, const char* name, Shape shape) {
  for (const AdapterParameter& p : d.adapter.parameters) inputs.push_back({message(name, ":", p.name), "float32", shape(p)});
}

void add_lora_b(std::vector<MethodInput>& inputs, const Description& d) {
  add_factors(inputs, d, "lora_b", [](const AdapterParameter& p) { return p.lora_b; });
}

void add_head(std::vector<MethodInput>& inputs, const Description& d) {
  if (d.head) inputs.push_back({"head", "float32", {d.classes(), d.head->shape[1]}});
}

std::string shown(const MethodInput& input) {
  std::string sizes;
  for (const int64_t size : input.shape) sizes += message(sizes.empty() ? "" : ", ", size);
  return input.name + " " + input.dtype + " [" + sizes + "]";
}

MethodInput parse_input(const Json& json) {
  Members members(json);
  MethodInput input{members.text("name"), members.text("dtype"),
                    members.get("shape", [](const Json& shape) { return shape.as_ints(); })};
  members.end();
  return input;
}

std::vector<MethodInput> parse_inputs(const Json& json) {
  std::vector<MethodInput> inputs;
  for (const Json& input : json.as_array()) inputs.push_back(parse_input(input));
  return inputs;
}

void check_method(const char* method, const std::vector<MethodInput>& expected, const std::vector<MethodInput>& got) {
  if (got.size() != expected.size()) fail(method, " must have ", expected.size(), " inputs, got ", got.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    const std::string wanted = shown(expected[i]), there = shown(got[i]);
    if (there != wanted) fail(method, ": input ", i, " must be ", wanted, ", got ", there);
  }
}

}  // namespace

std::vector<MethodInput> train_step_inputs(const Description& d) {
  std::vector<MethodInput> inputs;
  add_batch(inputs, d, d.batch_size);
  inputs.push_back({"target_ids", "int64", {d.batch_size, d.targets_per_row}});
  add_lora_b(inputs, d);
  const auto rows = [&](size_t of) {
    return [&d, of](const AdapterParameter& p) { return std::vector<int64_t>{d.groups, p.lora_b[of]}; };
  };
  add_factors(inputs, d, "u", rows(0));
  add_factors(inputs, d, "v", rows(1));
  add_head(inputs, d);
  return inputs;
}

std::vector<MethodInput> evaluate_inputs(const Description& d) {
  std::vector<MethodInput> inputs;
  add_batch(inputs, d, d.evaluation_rows);
  add_lora_b(inputs, d);
  add_head(inputs, d);
  return inputs;
}

void check_inputs(const Json& inputs, const Description& description) {
  Members members(inputs);
  const auto train_step = members.get("train_step", parse_inputs), evaluate = members.get("evaluate", parse_inputs);
  members.end();
  check_method("train_step", train_step_inputs(description), train_step);
  check_method("evaluate", evaluate_inputs(description), evaluate);
}

}  // namespace mobizo::trainer
