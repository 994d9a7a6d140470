#!/usr/bin/env bash
# Everything that wants a GPU, in one call: builds the CPU kernels in place, runs the tests of the GPU kernels and of steps as CUDA
# graphs, and times; made to take 20 minutes. Takes the options of benchmarks/bench_gpu.py, such as --json FILE. Needs a Python with
# torch for the GPU, triton, this package's requirements and pytest, CMake and a C++ compiler; ExecuTorch is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
cmake -S csrc -B build/gpu -DMOBIZO_TORCH_DIR="$(python -c 'import os, torch; print(os.path.dirname(torch.__file__))')"
cmake --build build/gpu --target mobizo_torch --parallel
cp build/gpu/_C.so mobizo_kernels/_C.abi3.so
python -m pytest tests/triton_values
python -m pytest tests/test_graphed.py tests/test_triton.py --deselect tests/test_triton.py::test_values
python -m benchmarks.bench_gpu "$@"
