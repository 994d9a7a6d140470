#!/usr/bin/env bash
# The kernels' native tests under AddressSanitizer and UndefinedBehaviorSanitizer, then under ThreadSanitizer. Needs cmake, ninja
# and g++.
#
# Kernels take long to compile, so they are built for one instruction set beside scalar: SIMD, which is avx2 or neon unless it is
# set. What was built stays in build/sanitize.
set -euo pipefail
cd "$(dirname "$0")/../.."

simd=${SIMD:-$([ "$(uname -m)" = x86_64 ] && echo avx2 || echo neon)}
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER-ccache}; fi
export UBSAN_OPTIONS=print_stacktrace=1
for sanitizers in address,undefined thread; do
  folder=build/sanitize/$simd-${sanitizers%,*}
  mkdir -p "$folder"
  {
    # Flags of a known build type would come behind these.
    [ -f "$folder/build.ninja" ] ||
      cmake -S csrc -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Sanitized -DCMAKE_CXX_COMPILER=g++ -DMOBIZO_BUILD_TESTS=ON \
        -DMOBIZO_INSTRUCTION_SETS="$simd" \
        -DCMAKE_CXX_FLAGS="-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=$sanitizers"
    cmake --build "$folder"
  } >"$folder.log" 2>&1 || {
    cat "$folder.log" >&2
    exit 1
  }
  echo "== $simd, $sanitizers"
  "$folder/kernel_tests" tests/support/noise_vectors.json
done
