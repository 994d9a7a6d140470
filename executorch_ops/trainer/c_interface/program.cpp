// Description, scoring and adapter of a program, and what files say of themselves.
#include <cmath>

#include "../files/file.h"
#include "../program/adapter.h"
#include "../program/evaluation.h"
#include "../program/file_info.h"
#include "handles.h"

namespace mobizo::trainer::c_interface {
namespace {

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

int64_t adapter_size(const Description& description) {
  int64_t count = 0;
  for (const AdapterParameter& parameter : description.adapter.parameters) count += elements(parameter.lora_b);
  return count;
}

void check_count(int64_t count, const Description& description) {
  if (const int64_t expected = adapter_size(description); count != expected)
    fail("count must be ", expected, ", the numbers of every LoRA-B, got ", count);
}

}  // namespace
}  // namespace mobizo::trainer::c_interface

using namespace mobizo::trainer;
using namespace mobizo::trainer::c_interface;

mobizo_status mobizo_program_description(mobizo_program* program, char** json) {
  return guarded([&] {
    const ProgramUse use(program);
    *given(json, "json") = allocated(use.program().description().text);
  });
}

mobizo_status mobizo_file_info(const char* path, char** json) {
  return guarded([&] { *given(json, "json") = allocated(file_info(given(path, "path")).dump()); });
}

mobizo_status mobizo_evaluate(mobizo_program* program, const char* dataset, const char* split, int64_t rows,
                              mobizo_evaluation* evaluation, float** scores, int32_t** labels) {
  return guarded([&] {
    const ProgramUse use(program);
    given(dataset, "dataset");
    given(split, "split");
    check_wanted(evaluation, "evaluation");
    if (rows < 0) fail("rows must be at least 0, got ", rows);
    const Dataset data(dataset);
    const Split& chosen = data.split(split);
    data.check(use.program().description());
    const Evaluation found = evaluate(use.program(), chosen, rows, scores != nullptr,
                                      [&] { use.check_cancelled("before the last row was scored"); });
    std::unique_ptr<float, decltype(&mobizo_free)> kept(scores == nullptr ? nullptr : allocated(found.scores), mobizo_free);
    if (labels != nullptr) *labels = allocated(std::vector<int32_t>(chosen.labels.begin(), chosen.labels.begin() + found.rows));
    if (scores != nullptr) *scores = kept.release();
    fill(evaluation, {0, found.rows, found.classes, found.loss, found.accuracy, found.balanced_accuracy});
  });
}

mobizo_status mobizo_adapter_save(mobizo_program* program, const char* path) {
  return guarded([&] {
    const ProgramUse use(program);
    check_distinct({{"path", given(path, "path")}}, {{"the program", use.program().path()}});
    save_adapter(path, use.program().description(), use.program().adapter());
  });
}

mobizo_status mobizo_adapter_load(mobizo_program* program, const char* path) {
  return guarded([&] {
    const ProgramUse use(program);
    load_adapter(given(path, "path"), use.program());
  });
}

mobizo_status mobizo_adapter_size(mobizo_program* program, int64_t* count) {
  return guarded([&] {
    const ProgramUse use(program);
    *given(count, "count") = adapter_size(use.program().description());
  });
}

mobizo_status mobizo_adapter_get(mobizo_program* program, float* values, int64_t count) {
  return guarded([&] {
    const ProgramUse use(program);
    check_count(count, use.program().description());
    float* out = given(values, "values");
    for (const std::vector<float>& lora_b : use.program().adapter().lora_b) out = std::copy(lora_b.begin(), lora_b.end(), out);
  });
}

mobizo_status mobizo_adapter_set(mobizo_program* program, const float* values, int64_t count) {
  return guarded([&] {
    const ProgramUse use(program);
    check_count(count, use.program().description());
    given(values, "values");
    const float* odd = std::find_if(values, values + count, [](float value) { return !std::isfinite(value); });
    if (odd != values + count) fail("values must be finite, got ", *odd, " at ", odd - values);
    std::vector<std::vector<float>> lora_b;
    for (const AdapterParameter& parameter : use.program().description().adapter.parameters) {
      const float* end = values + elements(parameter.lora_b);
      lora_b.emplace_back(values, end);
      values = end;
    }
    use.program().set_lora_b(lora_b);
  });
}
