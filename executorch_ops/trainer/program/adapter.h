// Adapter files: PEFT's adapter_model.safetensors, with the program's base model and PEFT's configuration in the metadata.
#pragma once

#include <string>

#include "program.h"

namespace mobizo::trainer {

// PEFT's name of a factor, "A" or "B", of the linear whose weight has this name.
std::string factor_name(const std::string& parameter, const char* factor);

// The whole of a head's LoRA-B, [out, rank], most of it zeros.
std::vector<float> head_lora_b(const HeadAdapter& head, const Description& description);

// Atomically: `path` holds what it held before if an Error is thrown.
void save_adapter(const std::string& path, const Description& description, const Adapter& adapter);

// The adapter of a file for a program of this description, whose LoRA-A are these. Throws Error unless the file has the
// program's parameters, its LoRA-A to the bit, and, if it names a base model, the program's; an adapter of the head is to be
// one that a readout made: of scaling 1, and zero but for the rows of the candidate tokens.
Adapter read_adapter(const std::string& path, const Description& description, const std::vector<std::vector<float>>& lora_a);

// Puts the LoRA-B of such a file, and the adapter of its LM head if it has one, into the program. Throws Error likewise, with
// the program as it was.
void load_adapter(const std::string& path, Program& program);

}  // namespace mobizo::trainer
