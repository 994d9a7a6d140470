"""mp_outer_ in Triton against the float64 reference, within float32 bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from guarded_memory import assert_guarded, guarded
from helpers import DTYPES, name_of
from mp_outer_problems import assert_close_to_mp_outer, outer_problem

# rows, in, out, groups: one value, tails, more rows in a group than a program takes, blocks of columns
SIZES = [(1, 1, 1, 1), (12, 7, 17, 4), (54, 65, 33, 3), (6, 0, 20, 3), (40, 300, 290, 2), (4, 129, 1100, 4)]


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("sizes", SIZES, ids=name_of)
def test_sizes(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, transposed: bool, op: Callable, device: str
) -> None:
    p = outer_problem(sizes, device, dtype, transposed)
    if sizes[3] > 2:
        p.coeffs[1] = 0.0
    base, memory = guarded(p.base.cpu(), device)
    assert op("mp_outer_")(base, *p[1:]) is None
    assert_close_to_mp_outer(base, p)
    assert_guarded(base, memory)


def test_awkward_strides(op: Callable, device: str) -> None:
    p = outer_problem((12, 20, 30, 3), device)
    base, x = p.base.t().contiguous().t(), p.x.t().contiguous().t()
    op("mp_outer_")(base, x, *p[2:])
    assert_close_to_mp_outer(base, p)


def test_no_rows(op: Callable, device: str) -> None:
    p = outer_problem((0, 20, 30, 3), device)
    assert op("mp_outer_")(*p) is None


def test_fake(assert_fake_agrees: Callable, device: str) -> None:
    assert_fake_agrees("mp_outer_", *outer_problem((12, 20, 30, 3), device))


def test_refuses_the_wrong_number_of_rows(op: Callable, device: str) -> None:
    p = outer_problem((12, 20, 30, 3), device)
    seeds, coeffs = torch.arange(5, device=device), torch.ones(5, device=device)
    with pytest.raises(RuntimeError, match=r"mp_outer_: rows of x \(12\) must be divisible"):
        op("mp_outer_")(p.base, p.x, seeds, coeffs, 1)
