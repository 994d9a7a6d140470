"""perturb_ and foreach_perturb_ against the numpy twin, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    SEEDS,
    assert_same_bits,
    directions,
    gaps_untouched,
    name_of,
    on_device,
    strided,
)
from hypothesis import given
from hypothesis import strategies as st

from mobizo_kernels import ops, reference


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 16, 33], ids="{}-seeds".format)
def test_any_number_of_seeds(count: int, distribution: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    param = torch.randn(2049 + 130, generator=rng).to(dtype)
    seeds, coeffs = directions(count, rng)
    expected = reference.perturb(param, seeds, coeffs, -5, 1.0, distribution)
    got = ops.perturb_(param, seeds, coeffs, -5, distribution=distribution)
    assert got is param
    assert_same_bits(param, expected)


@given(
    size=st.integers(0, 4200),
    count=st.integers(0, 6),
    decay=st.sampled_from([0.0, 0.5, 0.999, 1.0, 1.25]),
    dtype=st.sampled_from(DTYPES),
    distribution=st.sampled_from(DISTRIBUTIONS),
    stream=st.sampled_from(SEEDS),
    draw=st.integers(0, 2**32),
)
def test_any_size_and_decay(
    size: int, count: int, decay: float, dtype: torch.dtype, distribution: str, stream: int, draw: int
) -> None:
    rng = torch.Generator().manual_seed(draw)
    param = torch.randn(size, generator=rng).to(dtype)
    seeds, coeffs = directions(count, rng)
    expected = reference.perturb(param, seeds, coeffs, stream, decay, distribution)
    assert_same_bits(ops.perturb_(param, seeds, coeffs, stream, decay, distribution), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_extreme_values(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    extremes = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.max, -info.max, least, -least, 3 * least]
    param = torch.tensor(extremes, dtype=dtype).repeat(40)
    for coefficient in (0.0, least, info.max, 1.0):
        seeds, coeffs = torch.tensor([1, -2]), torch.tensor([coefficient, -coefficient / 3])
        expected = reference.perturb(param, seeds, coeffs, 9)
        assert_same_bits(ops.perturb_(param.clone(), seeds, coeffs, 9), expected)


def test_fused_multiply_add() -> None:
    """coeff * z falls half way between two float32 for many z; only a fused sum feels the tiny parameter."""
    z = reference.noise(512, 1, 2)
    param = torch.full((512,), 1e-30)
    seeds, coeffs = torch.tensor([1]), torch.tensor([1.5])
    expected = reference.perturb(param, seeds, coeffs, 2)
    assert not np.array_equal(expected.numpy(), np.float32(1.5) * z + np.float32(1e-30))
    assert_same_bits(ops.perturb_(param, seeds, coeffs, 2), expected)


def test_one_pass_is_many_passes_in_float32(rng: torch.Generator) -> None:
    param = torch.randn(300, generator=rng)
    seeds, coeffs = directions(5, rng)
    one_by_one = param.clone()
    for i in range(5):
        ops.perturb_(one_by_one, seeds[i : i + 1], coeffs[i : i + 1], 6)
    assert_same_bits(ops.perturb_(param, seeds, coeffs, 6), one_by_one)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", [(), (1, 1), (0, 3), (5, 7), (3, 4, 129)], ids=name_of)
def test_shapes_are_row_major(shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> None:
    param = torch.randn(shape, generator=rng).to(dtype)
    seeds, coeffs = directions(2, rng)
    expected = reference.perturb(param, seeds, coeffs, 3, 0.9)
    assert_same_bits(ops.perturb_(param, seeds, coeffs, 3, 0.9), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("layout", ["strided", "transposed", "offset"])
def test_non_contiguous_parameter(layout: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    values = torch.randn(37, 19, generator=rng).to(dtype)
    seeds, coeffs = directions(3, rng)
    expected = reference.perturb(values, seeds, coeffs, 3, 0.9)
    if layout == "strided":
        param = strided(values)
    elif layout == "transposed":
        param = values.t().contiguous().t()
    else:
        param = torch.cat([values[:1], values])[1:]
    ops.perturb_(param, seeds, coeffs, 3, 0.9)
    assert_same_bits(param.contiguous(), expected)
    if layout == "strided":
        assert gaps_untouched(param)


def test_non_contiguous_seeds_and_coeffs(rng: torch.Generator) -> None:
    param = torch.randn(77, generator=rng)
    seeds, coeffs = directions(8, rng)
    expected = reference.perturb(param, seeds[1::3], coeffs[::3][:3], 3)
    assert_same_bits(ops.perturb_(param, seeds[1::3], coeffs[::3][:3], 3), expected)


def test_foreach_is_perturb_of_each(rng: torch.Generator) -> None:
    shapes = [(3, 5), (0,), (2050,), (), (129, 3)]
    params = [torch.randn(s, generator=rng).to(DTYPES[i % 3]) for i, s in enumerate(shapes)]
    streams = [3, -4, 2**63 - 1, 0, -(2**63)]
    seeds, coeffs = directions(4, rng)
    for distribution in DISTRIBUTIONS:
        expected = reference.foreach_perturb(params, seeds, coeffs, streams, 0.95, distribution)
        ops.foreach_perturb_(params, seeds, coeffs, streams, 0.95, distribution)
        for param, updated in zip(params, expected, strict=True):
            assert_same_bits(param, updated)


def test_foreach_of_nothing(rng: torch.Generator) -> None:
    ops.foreach_perturb_([], *directions(2, rng), [])


BAD_DIRECTIONS: list[tuple[dict[str, Any], str]] = [
    ({"seeds": torch.ones(2, dtype=torch.int32)}, "seeds .*int64"),
    ({"seeds": torch.ones(2)}, "seeds .*int64"),
    ({"seeds": torch.ones(1, 2, dtype=torch.int64)}, "seeds"),
    ({"coeffs": torch.ones(2, dtype=torch.float64)}, "coeffs .*float32"),
    ({"coeffs": torch.ones(3)}, "coeffs"),
    ({"coeffs": torch.ones(2, 1)}, "coeffs"),
    ({"distribution": "normal"}, "distribution .*'normal'"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *BAD_DIRECTIONS,
        ({"param": torch.ones(3, dtype=torch.float64)}, "self .*float64"),
        ({"param": torch.ones(3, dtype=torch.int32)}, "self .*int32"),
    ],
    ids=name_of,
)
def test_perturb_refuses_and_writes_nothing(arguments: dict[str, Any], message: str, device: str) -> None:
    defaults = {"param": torch.ones(3), "seeds": torch.tensor([1, 2]), "coeffs": torch.ones(2), "stream": 0}
    call = on_device({**defaults, **arguments}, device)
    with pytest.raises(RuntimeError, match=f"mobizo::perturb_: .*{message}"):
        ops.perturb_(**call)
    if device == "cpu":
        assert bool((call["param"] == 1).all())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *BAD_DIRECTIONS,
        ({"streams": [1]}, "streams"),
        ({"last": torch.ones(3, dtype=torch.float64)}, r"self\[1\] .*float64"),
    ],
    ids=name_of,
)
def test_foreach_refuses_and_writes_nothing(arguments: dict[str, Any], message: str, device: str) -> None:
    defaults = {
        "last": torch.ones(3),
        "seeds": torch.tensor([1, 2]),
        "coeffs": torch.ones(2),
        "streams": [0, 1],
    }
    call = on_device({**defaults, **arguments}, device)
    params = [torch.ones(5, device=device), call.pop("last")]
    with pytest.raises(RuntimeError, match=f"mobizo::foreach_perturb_: .*{message}"):
        ops.foreach_perturb_(params, **call)
    if device == "cpu":
        assert all(bool((param == 1).all()) for param in params)


@pytest.mark.parametrize("name", ["seeds", "coeffs"])
def test_refuses_mixed_devices(name: str) -> None:
    seeds, coeffs = torch.tensor([1]), torch.ones(1)
    if name == "seeds":
        seeds = seeds.to("meta")
    else:
        coeffs = coeffs.to("meta")
    param = torch.ones(3)
    with pytest.raises(RuntimeError, match=f"mobizo::perturb_: {name} must be on cpu, got meta"):
        ops.perturb_(param, seeds, coeffs, 0)
    assert torch.equal(param, torch.ones(3))


def test_refuses_a_parameter_that_overlaps_itself() -> None:
    first, row = torch.ones(5), torch.ones(3)
    overlapping = row.expand(4, 3)
    with pytest.raises(RuntimeError, match="mobizo::perturb_: self .*overlap"):
        ops.perturb_(overlapping, torch.tensor([1]), torch.ones(1), 0)
    with pytest.raises(RuntimeError, match=r"mobizo::foreach_perturb_: self\[1\] .*overlap"):
        ops.foreach_perturb_([first, overlapping], torch.tensor([1]), torch.ones(1), [0, 1])
    with pytest.raises(RuntimeError, match="mobizo::zo_update: param .*overlap"):
        ops.zo_update(overlapping, torch.tensor([1]), torch.ones(1), 0)
    assert bool((first == 1).all())
    assert bool((row == 1).all())
