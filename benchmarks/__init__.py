"""Benchmarks, each a table of ratios from one run: `python -m benchmarks.bench_X [--json FILE]`."""
