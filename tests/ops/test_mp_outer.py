"""mp_outer_ against the float64 reference with u v^T written out, within float32 error bounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import DTYPES, assert_same_bits, gaps_untouched, name_of, on_device, poisoned, strided
from hypothesis import given
from hypothesis import strategies as st
from mp_outer_problems import OuterProblem, assert_close_to_mp_outer, moved, outer_problem

from mobizo_kernels import ops

# rows, in, out, groups
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 5, 2),
    (12, 7, 17, 4),
    (30, 65, 33, 3),
    (34, 40, 63, 2),
    (64, 129, 95, 8),
    (9, 33, 130, 9),
    (200, 96, 193, 2),
    (6, 0, 20, 3),
    (512, 16, 24, 256),
    (14, 1030, 2050, 2),
]


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("sizes", SIZES, ids=name_of)
def test_sizes(sizes: tuple[int, int, int, int], dtype: torch.dtype, transposed: bool) -> None:
    p = outer_problem(sizes, dtype=dtype, transposed=transposed)
    assert_close_to_mp_outer(moved(p), p)


@given(
    rows=st.integers(0, 20),
    width=st.integers(0, 200),
    height=st.integers(0, 200),
    groups=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    transposed=st.booleans(),
    paired=st.booleans(),
    draw=st.integers(0, 2**32),
)
def test_any_sizes(
    rows: int, width: int, height: int, groups: int, dtype: torch.dtype, transposed: bool, paired: bool,
    draw: int,
) -> None:  # fmt: skip
    p = outer_problem((rows * groups, width, height, groups), "cpu", dtype, transposed, draw)
    if paired and groups % 2 == 0:
        p = p._replace(seeds=p.seeds[: groups // 2].repeat(2))
    assert_close_to_mp_outer(moved(p), p)


@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "transposed"])
def test_it_is_a_linear_whose_weight_was_updated(transposed: bool) -> None:
    """With unit vectors for rows of x, what is added is the direction that perturb_ adds to a weight."""
    width, height = 37, 53
    p = outer_problem((2 * width, width, height, 2), transposed=transposed)
    p = p._replace(base=torch.zeros(2 * width, height), x=torch.eye(width).repeat(2, 1))
    shape = (width, height) if transposed else (height, width)
    for half, seed, coeff in zip(moved(p).split(width), p.seeds, p.coeffs, strict=True):
        weight = torch.zeros(shape)
        ops.perturb_(weight, seed[None], coeff[None], p.stream, 1.0, "outer")
        assert_same_bits(half, weight if transposed else weight.t().contiguous())


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("pattern", ["paired", "alone", "one"])
def test_groups_are_as_if_alone(pattern: str, dtype: torch.dtype) -> None:
    """Whatever groups share a seed or have coefficient 0, each has the bits of a call of its own."""
    p = outer_problem((28, 33, 70, 4), dtype=dtype)
    p.coeffs[1] = 0.0
    seeds = {"paired": p.seeds[:2].repeat(2), "alone": p.seeds, "one": p.seeds[:1].repeat(4)}[pattern]
    p = p._replace(seeds=seeds)
    got = moved(p)
    assert_same_bits(got[7:14], p.base[7:14])
    for group in range(4):
        part, here = slice(group * 7, (group + 1) * 7), slice(group, group + 1)
        alone = OuterProblem(p.base[part], p.x[part], p.seeds[here], p.coeffs[here], p.stream)
        assert_same_bits(got[part], moved(alone))


@pytest.mark.parametrize("leading", [(1,), (4, 3), (2, 3, 2)], ids=name_of)
def test_leading_sizes(leading: tuple[int, ...]) -> None:
    rows = torch.Size(leading).numel()
    p = outer_problem((rows, 19, 35, 2 if rows > 1 else 1))
    shaped = p._replace(base=p.base.reshape(*leading, 35), x=p.x.reshape(*leading, 19))
    assert_same_bits(moved(shaped).view(rows, 35), moved(p))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_awkward_strides(dtype: torch.dtype) -> None:
    p = outer_problem((24, 37, 67, 3), dtype=dtype)
    expected = moved(p)
    for x in (
        strided(p.x),
        p.x.t().contiguous().t(),
        torch.cat([p.x, poisoned(24, 3, dtype=dtype)], 1)[:, :37],
    ):
        assert_same_bits(moved(p._replace(x=x)), expected)
    rows = torch.cat([p.base, poisoned(24, 5, dtype=dtype)], dim=1)
    torch.ops.mobizo.mp_outer_(rows[:, :67], *p[1:])
    assert_same_bits(rows[:, :67].contiguous(), expected)
    assert bool(rows[:, 67:].isnan().all())
    spread = strided(p.base)
    torch.ops.mobizo.mp_outer_(spread, *p[1:])
    assert_same_bits(spread.contiguous(), expected)
    assert gaps_untouched(spread)


def test_rows_do_not_mix() -> None:
    p = outer_problem((24, 37, 67, 3))
    clean = moved(p)
    p.x[13] = torch.nan
    got, others = moved(p), torch.arange(24) != 13
    assert bool(got[13].isnan().all())
    assert_same_bits(got[others], clean[others])


def test_a_group_of_coefficient_zero_is_left_alone() -> None:
    p = outer_problem((8, 3, 5, 2))
    p.coeffs[0], p.x[0] = 0.0, torch.inf
    assert_same_bits(moved(p)[:4], p.base[:4])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.ones(12, 3, dtype=torch.float64)}, "x .*float64"),
    ({"x": torch.ones(())}, "x must have at least one dimension"),
    ({"base": torch.ones(12, 5, dtype=torch.bfloat16)}, "base .*float32.*bfloat16"),
    ({"base": torch.ones(11, 5)}, r"base .*\(11, 5\)"),
    ({"base": torch.ones(3, 4, 5)}, "base"),
    ({"base": torch.ones(())}, "base"),
    ({"seeds": torch.ones(4)}, "seeds .*int64"),
    ({"coeffs": torch.ones(4, dtype=torch.bfloat16)}, "coeffs .*float32, got bfloat16"),
    ({"coeffs": torch.ones(3)}, "coeffs"),
    ({"seeds": torch.ones(5, dtype=torch.int64), "coeffs": torch.ones(5)}, r"rows of x \(12\) .*\(5\)"),
    ({"seeds": torch.ones(0, dtype=torch.int64), "coeffs": torch.ones(0)}, "seeds"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=name_of)
def test_refuses(arguments: dict[str, Any], message: str, device: str) -> None:
    good = {
        "base": torch.ones(12, 5),
        "x": torch.ones(12, 3),
        "seeds": torch.arange(4),
        "coeffs": torch.ones(4),
    }
    call = on_device({**good, "stream": 0, **arguments}, device)
    with pytest.raises(RuntimeError, match=f"mobizo::mp_outer_: .*{message}"):
        ops.mp_outer_(**call)
    assert device == "meta" or bool((call["base"] == 1).all())


def test_refuses_other_devices_and_outputs_that_overlap_themselves() -> None:
    base, x, seeds, coeffs = torch.ones(12, 5), torch.ones(12, 3), torch.arange(4), torch.ones(4)
    for mixed in ((base, x.to("meta"), seeds, coeffs), (base, x, seeds.to("meta"), coeffs)):
        with pytest.raises(RuntimeError, match="mobizo::mp_outer_: .* must be on "):
            ops.mp_outer_(*mixed, 0)
    with pytest.raises(RuntimeError, match="base .*overlap"):
        ops.mp_outer_(torch.ones(5).expand(12, 5), x, seeds, coeffs, 0)
    assert bool((base == 1).all())
