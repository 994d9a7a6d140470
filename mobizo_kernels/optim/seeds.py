"""The seeds of a run: one 64-bit number gives every direction that will ever be tried."""

from __future__ import annotations

from numbers import Integral

import torch

_MASK = (1 << 64) - 1


def query_seed(run_seed: int, n: int) -> int:
    """Output number `n` of SplitMix64 (Steele et al., OOPSLA 2014) started at `run_seed`, as a signed int64.

    Run seeds that are 0x9E3779B97F4A7C15 apart give the same numbers, one place shifted: docs/noise.md.

    Args:
        run_seed: any 64-bit integer, signed or unsigned; only the bit pattern matters.
        n: from 0.
    """
    z = (run_seed + (n + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return signed_seed(z ^ (z >> 31))


def signed_seed(seed: int) -> int:
    """The 64-bit pattern of `seed` as the signed number that an int64 tensor and a journal hold."""
    return seed - (1 << 64) if seed >> 63 == 1 else seed


def query_seeds(run_seed: int, step: int, queries: int) -> torch.Tensor:
    """The seeds of the queries of one step, int64 [queries]: query k of step t takes n = t * queries + k.

    Args:
        run_seed: any 64-bit integer, signed or unsigned.
        step: from 0.
        queries: q, directions in each step.

    Raises:
        ValueError: if `run_seed` is no integer of 64 bits, `step` is negative or `queries` is below 1.
    """
    check_run_seed(run_seed)
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    if queries < 1:
        raise ValueError(f"queries must be at least 1, got {queries}")
    seeds = [query_seed(run_seed, step * queries + k) for k in range(queries)]
    return torch.tensor(seeds, dtype=torch.int64, device="cpu")


def check_run_seed(run_seed: int) -> None:
    """Raise ValueError unless `run_seed` is an integer that fits 64 bits, signed or unsigned."""
    if not isinstance(run_seed, Integral):
        raise ValueError(f"run_seed must be an integer, got {run_seed!r}")
    if not -(1 << 63) <= run_seed < 1 << 64:
        raise ValueError(f"run_seed must fit 64 bits, got {run_seed}")
