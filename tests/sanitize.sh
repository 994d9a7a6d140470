#!/usr/bin/env bash
# Builds the package with its C++ under AddressSanitizer and UndefinedBehaviorSanitizer, and runs tests of it: those of the ops in
# torch and in ExecuTorch, of the native trainer, its command line and its C interface, or what is named for pytest.
#
#   tests/sanitize.sh tests/executorch/test_c_interface.py -k cancelled
#
# Needs what builds the package in `python`, g++ and Debian's libpcre2-dev. What was built stays in build/sanitize. Kernels are
# built for one instruction set beside scalar: SIMD, which is avx2 or neon unless it is set.
set -euo pipefail
cd "$(dirname "$0")/.."

simd=${SIMD:-$([ "$(uname -m)" = x86_64 ] && echo avx2 || echo neon)}
base=$PWD/build/sanitize/package-$simd
mkdir -p "$base"
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER-ccache}; fi
flags="-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=address,undefined"
# Flags of a known build type would come behind these. Nothing is stripped: a finding names its lines.
CXX=g++ CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Sanitized -DMOBIZO_HIDDEN_PREFIXES= -DMOBIZO_INSTRUCTION_SETS=$simd -DCMAKE_CXX_FLAGS='$flags'" \
  python setup.py -q build --build-base "$base" >"$base.log" 2>&1 || {
  cat "$base.log" >&2
  exit 1
}

# From another folder, whose sources would hide the instrumented package.
away=$(mktemp -d)
trap 'rm -rf "$away"' EXIT
cp -r tests examples pyproject.toml "$away"
tests=("$@")
[ $# -gt 0 ] || tests=(--numprocesses auto --dist loadfile tests/ops tests/executorch)
library=$(echo "$base"/lib*)
cd "$away"
# Python itself knows nothing of either: their libraries come first, and the C++ library, whose exceptions they watch, with them.
# Leaks are its own habit. An allocation that is too large fails, as without them. The test left out limits addresses to 4 GB.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" PYTHONPATH=$library \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  python -m pytest -p no:cacheprovider "${tests[@]}" --deselect tests/executorch/test_damage.py::test_descriptions_changed_anywhere
