"""The seeds of queries: known answers, and the layout over steps."""

from __future__ import annotations

import pytest
import torch
from helpers import KNOWN_ANSWERS, signed
from hypothesis import given
from hypothesis import strategies as st

from mobizo_kernels import reference
from mobizo_kernels.optim import query_seed, query_seeds


def test_known_answers() -> None:
    for run_seed, n, expected in KNOWN_ANSWERS["query_seed"]:
        assert query_seed(int(run_seed, 16), int(n)) == signed(expected)


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 10**12))
def test_equals_the_twin_for_both_signs(run_seed: int, n: int) -> None:
    seed = query_seed(run_seed, n)
    assert -(2**63) <= seed < 2**63
    assert seed % 2**64 == reference.splitmix64(run_seed, n)
    assert seed == query_seed(run_seed % 2**64, n)


def test_steps_follow_each_other() -> None:
    seeds = torch.cat([query_seeds(42, step, 3) for step in range(5)])
    assert seeds.dtype == torch.int64
    assert seeds.tolist() == [query_seed(42, n) for n in range(15)]
    assert len(set(seeds.tolist())) == 15


def test_run_seeds_walk_one_cycle() -> None:
    step, cycle = 0x9E3779B97F4A7C15, 2**64
    assert [query_seed((42 + step) % cycle, n) for n in range(9)] == [query_seed(42, n) for n in range(1, 10)]
    inverse = pow(step, -1, cycle)
    starts = sorted(seed * inverse % cycle for seed in range(1_000_001))  # where each begins in the cycle
    gaps = [after - before for before, after in zip(starts, [*starts[1:], starts[0] + cycle], strict=True)]
    assert min(gaps) > 10**12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2**64, 0, 1), "run_seed must fit 64 bits, got 18446744073709551616"),
        ((-(2**63) - 1, 0, 1), "run_seed must fit 64 bits"),
        ((0, -1, 1), "step must be at least 0, got -1"),
        ((0, 0, 0), "queries must be at least 1, got 0"),
    ],
)
def test_errors(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        query_seeds(*arguments)
