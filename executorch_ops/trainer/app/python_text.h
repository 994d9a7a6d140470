// What becomes of texts, in the Python module: for tests.
#pragma once

#include <pybind11/pybind11.h>

namespace mobizo::trainer {

void bind_text(pybind11::module_& module);

}  // namespace mobizo::trainer
