// Adapter files: PEFT's adapter_model.safetensors, with the program's base model and PEFT's configuration in the metadata.
#pragma once

#include <string>

#include "program.h"

namespace mobizo::trainer {

// PEFT's name of a factor, "A" or "B", of a parameter.
std::string factor_name(const AdapterParameter& parameter, const char* factor);

// Atomically: `path` holds what it held before if an Error is thrown.
void save_adapter(const std::string& path, const Description& description, const Adapter& adapter);

// Puts the LoRA-B of the file into the program. Throws Error, with the program as it was, unless the file has the program's
// parameters, its LoRA-A to the bit, and, if it names a base model, the program's.
void load_adapter(const std::string& path, Program& program);

}  // namespace mobizo::trainer
