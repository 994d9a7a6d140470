// Apart from adapter.cpp, which does without ExecuTorch.
#include "adapter.h"

namespace mobizo::trainer {

void load_adapter(const std::string& path, Program& program) {
  Adapter adapter = read_adapter(path, program.description(), program.adapter().lora_a);
  program.set_lora_b(adapter.lora_b);
  program.set_head(std::move(adapter.head));
}

}  // namespace mobizo::trainer
