// Any safetensors file: its tensors lie in it.
#include "safetensors_file.h"

using namespace mobizo::trainer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::InputFile input("input.safetensors");
  const std::string& path = input.holding({reinterpret_cast<const char*>(data), size});
  fuzz::taken([&] {
    const SafetensorsFile file(path);
    for (const auto& [name, tensor] : file.tensors()) {
      fuzz::promise(tensor.offset >= 8 && tensor.bytes >= 0 && tensor.offset + tensor.bytes <= static_cast<int64_t>(size),
                    "a tensor lies in its file");
      if (tensor.dtype == "F32") static_cast<void>(file.read<float>(name));
      if (tensor.dtype == "I32") static_cast<void>(file.read<int32_t>(name));
      fuzz::taken([&, &name = name] { static_cast<void>(file.read<int64_t>(name)); });
    }
  });
  return 0;
}

void fuzz::change(std::string& input, Mutator& mutator) { mutate_safetensors(input, mutator); }
