#!/usr/bin/env bash
# Builds the native test program and runs it; with --aarch64 also cross-builds it and runs it under qemu on two ARM CPUs, whose noise,
# updates and optimizers must have the bits of this machine's. Needs cmake, ninja and g++; --aarch64 Debian's g++-aarch64-linux-gnu and
# qemu-user-static as well.
set -euo pipefail
cd "$(dirname "$0")/../.."

case "${1-}" in
  "" | --aarch64) ;;
  *) echo "usage: tests/native/run.sh [--aarch64]" >&2; exit 2 ;;
esac

build() {  # build DIRECTORY [CMAKE ARGUMENT...]; once configured, ninja itself calls cmake when it must
  {
    [ -f "$1/build.ninja" ] || cmake -S csrc -B "$1" -G Ninja -DMOBIZO_BUILD_TESTS=ON "${@:2}" && cmake --build "$1"
  } >"$1.log" || {
    cat "$1.log" >&2
    exit 1
  }
}

digest=""
run() {  # run NAME COMMAND...: the test program's output, and the same digest as in every run before
  echo "== $1"
  local output status=0
  output=$("${@:2}" tests/support/noise_vectors.json) || status=$?
  echo "$output"
  [ "$status" = 0 ] || exit "$status"
  local found
  found=$(sed -n 's/^digest //p' <<<"$output")
  if [ -n "$digest" ] && [ "$digest" != "$found" ]; then
    echo "FAILED: the digest on $1 is $found, expected $digest" >&2
    exit 1
  fi
  digest=$found
}

mkdir -p build
build build/native
run "$(uname -m)" build/native/kernel_tests
if [ "${1-}" = --aarch64 ]; then
  build build/aarch64 --toolchain cmake/aarch64-linux-gnu.cmake
  for cpu in max,sme=off cortex-a53; do
    run "aarch64, $cpu" qemu-aarch64-static -L /usr/aarch64-linux-gnu -cpu "$cpu" build/aarch64/kernel_tests
  done
fi
