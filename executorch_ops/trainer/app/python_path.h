// A path as Python has it: str, bytes, or what has __fspath__. (pybind11's own would take std::filesystem along, which the C++
// library has only since GCC 9.)
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace mobizo::trainer {

struct Path {
  const std::string& string() const { return text; }

  std::string text;
};

}  // namespace mobizo::trainer

namespace pybind11::detail {

template <>
struct type_caster<mobizo::trainer::Path> {
  PYBIND11_TYPE_CASTER(mobizo::trainer::Path, const_name("Union[os.PathLike, str, bytes]"));

  bool load(handle source, bool /*convert*/) {
    PyObject* encoded = nullptr;
    if (PyUnicode_FSConverter(source.ptr(), &encoded) == 0) {
      PyErr_Clear();
      return false;
    }
    value.text = std::string(reinterpret_steal<bytes>(encoded));
    return true;
  }
};

}  // namespace pybind11::detail
