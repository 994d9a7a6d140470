#!/usr/bin/env bash
# Builds the package with instrumented C++, runs the test suite on it, and tells the lines that were run: of Python by pytest-cov, of C++
# by gcovr. Needs what builds the package in `python`, g++ and gcov, and three times as long as the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

base=$PWD/build/coverage
mkdir -p "$base"
CXXFLAGS="--coverage -fprofile-update=atomic" LDFLAGS=--coverage CXX=g++ CC=gcc \
  python setup.py -q build --build-base "$base" >"$base.log" 2>&1 || {
  cat "$base.log" >&2
  exit 1
}
find "$base" -name '*.gcda' -delete

# From another folder, whose sources would hide the instrumented package.
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
cp -r tests benchmarks docs pyproject.toml "$away"
library=$(echo "$base"/lib*)
(
  cd "$away"
  # Instrumented binaries name their sources, which those of a wheel must not.
  PYTHONPATH=$library python -m pytest --numprocesses auto --dist loadfile tests --ignore tests/docs --deselect \
    tests/test_binaries.py::test_no_path_of_the_building_machine --cov mobizo_kernels --cov-report "xml:$base/python.xml" \
    --cov-report term | tee "$base/python.txt" | tail -n 4
)
# A line counts once for all instruction sets and types. CMake's trial programs have no sources here.
gcovr --merge-lines --root . --filter csrc --filter executorch_ops --object-directory "$base" --gcov-exclude-directories '.*/CompilerIdCXX.*' \
  --gcov-ignore-parse-errors=all --gcov-ignore-errors=no_working_dir_found \
  --txt "$base/cpp.txt" --print-summary
grep '^TOTAL' "$base/python.txt"
