#!/usr/bin/env bash
# One stage of what wants a GPU, in one call: builds the CPU kernels in place unless they are there, checks, times.
#
#   benchmarks/run_gpu.sh --stage ops   --json ops.json     # at most 240 seconds, the build included
#   benchmarks/run_gpu.sh --stage steps --json steps.json   # at most 300
#
# --seconds N sets another limit; all other options are those of benchmarks/gpu/bench.py. Needs a python3 (or PYTHON) with torch for
# the GPU, triton and this package's requirements, CMake, ninja and a C++ compiler; ExecuTorch is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

stage="" limit="" options=()
while [ $# -gt 0 ]; do
  case $1 in
    --stage) stage=${2-}; shift 2 || break ;;
    --seconds) limit=${2-}; shift 2 || break ;;
    *) options+=("$1"); shift ;;
  esac
done
case $stage in
  ops) limit=${limit:-240} ;;
  steps) limit=${limit:-300} ;;
  *) echo "usage: benchmarks/run_gpu.sh --stage ops|steps [--seconds N] [options of benchmarks/gpu/bench.py]" >&2; exit 2 ;;
esac

if ! "$python" -c 'import mobizo_kernels' 2>/dev/null; then
  torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
  cmake -S csrc -B build/gpu -G Ninja -DMOBIZO_TORCH_DIR="$torch" >/dev/null
  cmake --build build/gpu --target mobizo_torch >/dev/null
  cp build/gpu/_C.so mobizo_kernels/_C.abi3.so
  echo "built in $SECONDS s"
fi
exec "$python" -m benchmarks.gpu.bench --stage "$stage" --until "$(($(date +%s) + limit - SECONDS))" "${options[@]}"
