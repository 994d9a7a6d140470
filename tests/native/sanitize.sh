#!/usr/bin/env bash
# The native tests of kernels, trainer and C interface under AddressSanitizer and UndefinedBehaviorSanitizer, then under
# ThreadSanitizer. Needs python with this package and ExecuTorch, cmake >= 3.28, ninja, g++ and Debian's libpcre2-dev.
#
# Kernels take long to compile, so they are built for one instruction set beside scalar: SIMD, which is avx2 or neon unless it is
# set. What was built stays in build/sanitize.
set -euo pipefail
cd "$(dirname "$0")/../.."

simd=${SIMD:-$([ "$(uname -m)" = x86_64 ] && echo avx2 || echo neon)}
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER-ccache}; fi
executorch=$(python -c 'import executorch; print(next(iter(executorch.__path__)))')
export LD_LIBRARY_PATH=$executorch/lib
export UBSAN_OPTIONS=print_stacktrace=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python tests/support/trainer_files.py "$scratch" >"$scratch/log" 2>&1 || {
  cat "$scratch/log" >&2
  exit 1
}
for sanitizers in address,undefined thread; do
  folder=build/sanitize/$simd-${sanitizers%,*}
  mkdir -p "$folder" "$scratch/$sanitizers"
  {
    # Flags of a known build type would come behind these.
    [ -f "$folder/build.ninja" ] ||
      cmake -S executorch_ops -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Sanitized -DCMAKE_CXX_COMPILER=g++ \
        -DMOBIZO_BUILD_TESTS=ON -DMOBIZO_INSTRUCTION_SETS="$simd" -Dexecutorch_DIR="$executorch/share/cmake" \
        -DCMAKE_CXX_FLAGS="-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=$sanitizers"
    cmake --build "$folder" --target kernel_tests thread_tests $([ "$sanitizers" = thread ] || echo trainer_tests)
  } >"$folder.log" 2>&1 || {
    cat "$folder.log" >&2
    exit 1
  }
  echo "== $simd, $sanitizers"
  "$folder/csrc/kernel_tests" tests/support/noise_vectors.json
  # Those of the trainer compute on ExecuTorch's pool, which is built without ThreadSanitizer: it sees no order in what that does.
  [ "$sanitizers" = thread ] || "$folder/trainer_tests" tests/support/noise_vectors.json
  "$folder/thread_tests" "$scratch"/{llama.pte,data.safetensors,tokenizer.json} "$scratch/$sanitizers"
done
