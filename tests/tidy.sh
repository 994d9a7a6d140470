#!/usr/bin/env bash
# clang-tidy, as .clang-tidy has it, over the C++ of the package, or the files whose names match a regular expression.
#
#   tests/tidy.sh trainer/files
#
# Needs clang-tidy, cmake, ninja, pybind11 and the package's requirements in `python`, a C++ compiler, and Debian's libpcre2-dev.
set -euo pipefail
cd "$(dirname "$0")/.."

base=build/tidy
mkdir -p $base
folder() { python -c "import $1; print(next(iter($1.__path__)))"; }
{
  # Kernels are the same sources for all instruction sets.
  [ -f $base/build.ninja ] ||
    cmake -S executorch_ops -B $base -G Ninja -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DMOBIZO_BUILD_TESTS=ON \
      -DMOBIZO_PYTHON_MODULE=ON -DMOBIZO_INSTRUCTION_SETS=avx2 -DMOBIZO_TORCH_DIR="$(folder torch)" \
      -Dexecutorch_DIR="$(folder executorch)/share/cmake" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" \
      -DPython_EXECUTABLE="$(command -v python)"
} >$base.log 2>&1 || {
  cat $base.log >&2
  exit 1
}
# Named in full: Debian has a script of the same name, which runs another version.
run-clang-tidy.py -clang-tidy-binary "$(command -v clang-tidy)" -p $base -quiet "${@:-/(csrc|executorch_ops)/}"
