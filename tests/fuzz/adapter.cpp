// Adapters, as a program takes them: a file of PEFT's, or one of a readout with a head.
#include "../../executorch_ops/trainer/program/adapter.h"

#include "safetensors_file.h"

using namespace mobizo::trainer;

namespace {

// LoRA-A of the program to which the adapters of the corpus belong.
std::vector<std::vector<float>> factors_of(const Description& description) {
  std::vector<std::vector<float>> factors;
  for (const AdapterParameter& parameter : description.adapter.parameters)
    factors.emplace_back(static_cast<size_t>(parameter.lora_a[0] * parameter.lora_a[1]), 0.5f);
  return factors;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::InputFile input("input.safetensors"), output("output.safetensors");
  static const Description description = parse_description(fuzz::whole("description/head.json"));
  static const std::vector<std::vector<float>> lora_a = factors_of(description);
  const std::string& path = input.holding({reinterpret_cast<const char*>(data), size});
  fuzz::taken([&] {
    const Adapter adapter = read_adapter(path, description, lora_a);
    fuzz::promise(adapter.lora_b.size() == lora_a.size(), "an adapter has each parameter");
    const std::string& saved = output.holding("");
    save_adapter(saved, description, adapter);
    const Adapter again = read_adapter(saved, description, lora_a);
    fuzz::promise(again.head.has_value() == adapter.head.has_value(), "an adapter is saved with its head");
    for (size_t i = 0; i < lora_a.size(); ++i)
      fuzz::promise(std::memcmp(again.lora_b[i].data(), adapter.lora_b[i].data(), 4 * adapter.lora_b[i].size()) == 0,
                    "an adapter is saved and read back to the bit");
  });
  return 0;
}

void fuzz::change(std::string& input, Mutator& mutator) { mutate_safetensors(input, mutator); }
