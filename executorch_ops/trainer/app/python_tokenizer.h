// The tokenizer in the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace mobizo::trainer {

void bind_tokenizer(pybind11::module_& module);

}  // namespace mobizo::trainer
