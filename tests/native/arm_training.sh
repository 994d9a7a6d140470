#!/usr/bin/env bash
# Cross-builds the native trainer for aarch64 and trains a small Llama under qemu on two ARM CPUs: the losses must be this machine's, a
# journal must replay to the same bits on all of them and in torch, by mobizo_runner and by an app in C, and the tuned program must write
# the same words. Runs the trainer's native tests on each as well. Needs python with this package and ExecuTorch, cmake >= 3.28, ninja,
# g++, Debian's g++-aarch64-linux-gnu (with gcc) and qemu-user-static.
set -euo pipefail
cd "$(dirname "$0")/../.."

build() {  # build KERNELS TRAINER EXECUTORCH [CMAKE ARGUMENT...]; once configured, ninja itself calls cmake when it must
  {
    # As run.sh does, whose kernels are taken if they are there.
    [ -f "$1/build.ninja" ] || cmake -S csrc -B "$1" -G Ninja -DMOBIZO_BUILD_TESTS=ON "${@:4}"
    cmake --build "$1" --target mobizo_core
    [ -f "$2/build.ninja" ] ||
      cmake -S executorch_ops -B "$2" -G Ninja -DMOBIZO_BUILD_TESTS=ON -DMOBIZO_CORE="$PWD/$1/libmobizo_core.a" \
        -Dexecutorch_DIR="$3/share/cmake" "${@:4}"
    cmake --build "$2" --target mobizo_runner trainer_tests c_example
  } >"$2.log" || {
    cat "$2.log" >&2
    exit 1
  }
}

# The libraries of the wheel for ARM are those of the release that is installed here; they do not depend on the version of Python.
version=$(python -c 'from importlib.metadata import version; print(version("executorch"))')
wheel=$PWD/build/executorch-$version-aarch64
if [ ! -d "$wheel" ]; then
  mkdir -p build
  python -m pip --disable-pip-version-check download --quiet --only-binary=:all: --no-deps --platform manylinux_2_28_aarch64 \
    --python-version 3.11 --dest build "executorch==$version"
  python -m zipfile -e "build/executorch-$version"-*aarch64.whl "$wheel.part"
  mv "$wheel.part" "$wheel"
fi

native=$(python -c 'import executorch; print(next(iter(executorch.__path__)))')
build build/native build/executorch "$native"
build build/aarch64 build/executorch-aarch64 "$wheel/executorch" --toolchain "$PWD/csrc/cmake/aarch64-linux-gnu.cmake"

python tests/native/arm_training.py build/executorch "$native/lib" build/executorch-aarch64 "$wheel/executorch/lib"
