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

names=()
started=()
run() {  # run NAME COMMAND...: the test program, beside those that run already
  "${@:2}" tests/support/noise_vectors.json >"build/kernel_tests.${#names[@]}.log" 2>&1 &
  names+=("$1")
  started+=($!)
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

digest=""
for i in "${!names[@]}"; do
  status=0
  wait "${started[i]}" || status=$?
  echo "== ${names[i]}"
  cat "build/kernel_tests.$i.log"
  [ "$status" = 0 ] || exit "$status"
  found=$(sed -n 's/^digest //p' "build/kernel_tests.$i.log")
  if [ -n "$digest" ] && [ "$digest" != "$found" ]; then
    echo "FAILED: the digest on ${names[i]} is $found, expected $digest" >&2
    exit 1
  fi
  digest=$found
done
