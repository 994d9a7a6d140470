"""Benchmarks, each a table of ratios from one run: `python -m benchmarks.cpu.bench_X [--json FILE]`.

cpu          the kernels, and a step in torch
gpu          the Triton kernels and a step, on a GPU; what they compile to, without one
executorch   a step inside ExecuTorch
statistics   whether the noise is random
study        what a step learns, by method and by setting
"""
