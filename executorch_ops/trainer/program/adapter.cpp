#include "adapter.h"

#include <cstring>
#include <set>

#include "../files/errors.h"
#include "../files/json.h"
#include "../files/safetensors.h"

namespace mobizo::trainer {
namespace {

std::vector<float> read_factor(const SafetensorsFile& file, const AdapterParameter& parameter, const char* factor,
                               const std::vector<int64_t>& shape) {
  const std::string name = factor_name(parameter, factor);
  std::vector<float> values = file.read<float>(name);
  const std::vector<int64_t>& got = file.tensors().at(name).shape;
  if (got != shape) fail(file.path(), ": tensor '", name, "' must have shape ", shape_text(shape), ", got ", shape_text(got));
  return values;
}

// What decides, beside the matrices, what an adapter computes: LORA_SCALING of mobizo_kernels/conventions.py. PEFT writes all
// of it; another file need not say any.
void check_scaling(const SafetensorsFile& file, const Description& description) {
  const std::string text = file.metadata("adapter_config");
  if (text.empty()) return;
  const Json config = blaming(file.path() + ": adapter_config", [&] { return parse_json(text); });
  const Json own = parse_json(description.adapter.config);
  for (const char* name : {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}) {
    const Json *expected = own.find(name), *got = config.find(name);
    if (expected != nullptr && got != nullptr && *expected != *got)
      fail(file.path(), ": ", name, " must be ", expected->dump(), ", that of the program, got ", got->dump());
  }
}

}  // namespace

std::string factor_name(const AdapterParameter& parameter, const char* factor) {
  constexpr const char* kSuffix = ".weight";
  std::string path = parameter.name;
  const size_t length = std::strlen(kSuffix);
  if (path.size() > length && path.compare(path.size() - length, length, kSuffix) == 0) path.resize(path.size() - length);
  return "base_model.model." + path + ".lora_" + factor + ".weight";
}

void save_adapter(const std::string& path, const Description& description, const Adapter& adapter) {
  std::vector<NamedTensor> tensors;
  for (size_t i = 0; i < description.adapter.parameters.size(); ++i) {
    const AdapterParameter& parameter = description.adapter.parameters[i];
    tensors.push_back({factor_name(parameter, "A"), parameter.lora_a, &adapter.lora_a[i]});
    tensors.push_back({factor_name(parameter, "B"), parameter.lora_b, &adapter.lora_b[i]});
  }
  write_safetensors(
      path, tensors,
      {{"format", "pt"}, {"base_fingerprint", description.model.fingerprint}, {"adapter_config", description.adapter.config}});
}

void load_adapter(const std::string& path, Program& program) {
  const SafetensorsFile file(path);
  const Description& description = program.description();
  const std::string base = file.metadata("base_fingerprint");
  if (!base.empty() && base != description.model.fingerprint)
    fail(path, ": the adapter is of another base model: the program's is ", description.model.fingerprint, ", got ", base);
  check_scaling(file, description);
  const Adapter current = program.adapter();
  std::set<std::string> expected;
  std::vector<std::vector<float>> lora_b;
  for (size_t i = 0; i < description.adapter.parameters.size(); ++i) {
    const AdapterParameter& parameter = description.adapter.parameters[i];
    const std::vector<float> lora_a = read_factor(file, parameter, "A", parameter.lora_a);
    if (std::memcmp(lora_a.data(), current.lora_a[i].data(), 4 * lora_a.size()) != 0)
      fail(path, ": LoRA-A of ", parameter.name, " is not that of the program, which cannot change it");
    lora_b.push_back(read_factor(file, parameter, "B", parameter.lora_b));
    expected.insert({factor_name(parameter, "A"), factor_name(parameter, "B")});
  }
  for (const auto& [name, tensor] : file.tensors())
    if (expected.count(name) == 0) fail(path, ": tensor '", name, "' is not of the program's adapter");
  program.set_lora_b(lora_b);
}

}  // namespace mobizo::trainer
