// What becomes of texts, in the Python module: for tests.
#pragma once

#include <pybind11/pybind11.h>

namespace mobizo::trainer {

// Of an integer, as TextOptions has it of a seed.
uint64_t size_of(const pybind11::int_& seed);

void bind_text(pybind11::module_& module);

}  // namespace mobizo::trainer
