"""perturb_ and foreach_perturb_ in Triton against the numpy twin, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from guarded_memory import assert_guarded, guarded, moved
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    SEEDS,
    assert_same_bits,
    covering,
    directions,
    gaps_untouched,
    name_of,
    poisoned,
)

from mobizo_kernels import reference

# One element, whole and cut accesses to memory, one block, and blocks with a tail.
SIZES = (1, 5, 8, 130, 2047, 2048, 2049, 4100)


@pytest.mark.parametrize(
    ("size", "distribution", "dtype"), covering(SIZES, DISTRIBUTIONS, DTYPES), ids=name_of
)
def test_any_size(
    size: int, distribution: str, dtype: torch.dtype, op: Callable, device: str, rng: torch.Generator
) -> None:
    values = torch.randn(size, generator=rng).to(dtype)
    seeds, coeffs = directions(2, rng)
    stream, decay = SEEDS[size % len(SEEDS)], (1.0, 0.9)[size % 2]
    expected = reference.perturb(values, seeds, coeffs, stream, decay, distribution)
    param, memory = guarded(values, device)
    assert op("perturb_")(param, seeds.to(device), coeffs.to(device), stream, decay, distribution) is param
    assert_same_bits(param.cpu(), expected)
    assert_guarded(param, memory)


@pytest.mark.parametrize(
    ("distribution", "dtype", "count"), covering(DISTRIBUTIONS, DTYPES, (0, 1, 17)), ids=name_of
)
def test_any_number_of_seeds(
    count: int, distribution: str, dtype: torch.dtype, op: Callable, device: str, rng: torch.Generator
) -> None:
    values = torch.randn(2179, generator=rng).to(dtype)
    seeds, coeffs = directions(count, rng)
    expected = reference.perturb(values, seeds, coeffs, -5, 1.0, distribution)
    param = op("perturb_")(
        values.to(device), seeds.to(device), coeffs.to(device), -5, distribution=distribution
    )
    assert_same_bits(param.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_extreme_values(dtype: torch.dtype, op: Callable, device: str) -> None:
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    extremes = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.max, -info.max, least, -least, 3 * least]
    values = torch.tensor(extremes, dtype=dtype).repeat(40)
    for coefficient in (0.0, least, info.max, 1.0):
        seeds, coeffs = torch.tensor([1, -2]), torch.tensor([coefficient, -coefficient / 3])
        expected = reference.perturb(values, seeds, coeffs, 9)
        param = op("perturb_")(values.to(device), seeds.to(device), coeffs.to(device), 9)
        assert_same_bits(param.cpu(), expected)


def test_fused_multiply_add(op: Callable, device: str) -> None:
    """coeff * z falls half way between two float32 for many z; only a fused sum feels the tiny parameter."""
    z = reference.noise(512, 1, 2)
    values = torch.full((512,), 1e-30)
    seeds, coeffs = torch.tensor([1]), torch.tensor([1.5])
    expected = reference.perturb(values, seeds, coeffs, 2)
    assert not np.array_equal(expected.numpy(), np.float32(1.5) * z + np.float32(1e-30))
    assert_same_bits(
        op("perturb_")(values.to(device), seeds.to(device), coeffs.to(device), 2).cpu(), expected
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", [(), (1, 1), (0, 3), (5, 7), (3, 4, 129)], ids=name_of)
def test_shapes_are_row_major(
    shape: tuple[int, ...], dtype: torch.dtype, op: Callable, device: str, rng: torch.Generator
) -> None:
    values = torch.randn(shape, generator=rng).to(dtype)
    seeds, coeffs = directions(2, rng)
    expected = reference.perturb(values, seeds, coeffs, 3, 0.9)
    param = op("perturb_")(values.to(device), seeds.to(device), coeffs.to(device), 3, 0.9)
    assert_same_bits(param.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("layout", ["strided", "transposed", "offset"])
@pytest.mark.parametrize("form", ["perturb_", "foreach_perturb_"])
def test_non_contiguous_parameter(
    form: str, layout: str, dtype: torch.dtype, op: Callable, device: str, rng: torch.Generator
) -> None:
    values = torch.randn(37, 19, generator=rng).to(dtype)
    seeds, coeffs = directions(3, rng)
    expected = reference.perturb(values, seeds, coeffs, 3, 0.9)
    if layout == "strided":
        param = poisoned(75, 39, dtype=dtype).to(device)[1::2, 1::2]
    elif layout == "transposed":
        param = poisoned(19, 37, dtype=dtype).to(device).t()
    else:
        param, memory = guarded(values, device, before=1)
    param.copy_(values)
    arguments = (seeds.to(device), coeffs.to(device))
    if form == "perturb_":
        op(form)(param, *arguments, 3, 0.9)
    else:
        op(form)([param], *arguments, [3], 0.9)
    assert_same_bits(param.contiguous().cpu(), expected)
    if layout == "strided":
        assert gaps_untouched(param)
    if layout == "offset":
        assert_guarded(param, memory)


def test_non_contiguous_seeds_and_coeffs(op: Callable, device: str, rng: torch.Generator) -> None:
    values = torch.randn(77, generator=rng)
    seeds, coeffs = directions(8, rng)
    expected = reference.perturb(values, seeds[1::3], coeffs[::3][:3], 3)
    seeds, coeffs = seeds.to(device), coeffs.to(device)
    assert_same_bits(op("perturb_")(values.to(device), seeds[1::3], coeffs[::3][:3], 3).cpu(), expected)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.bfloat16,), DTYPES], ids=name_of)
def test_foreach_is_perturb_of_each(
    dtypes: tuple[torch.dtype, ...], distribution: str, op: Callable, device: str, rng: torch.Generator
) -> None:
    shapes = [(3, 5), (0,), (4100,), (), (2048,), (129, 3)]
    values = [torch.randn(s, generator=rng).to(dtypes[i % len(dtypes)]) for i, s in enumerate(shapes)]
    held = [guarded(value, device, before=i % 2) for i, value in enumerate(values)]
    streams = [3, -4, 2**63 - 1, 0, -(2**63), 5]
    seeds, coeffs = directions(3, rng)
    for decay in (0.95, 1.0):  # the second call finds the table of the first
        values = reference.foreach_perturb(values, seeds, coeffs, streams, decay, distribution)
        params = [param for param, _ in held]
        result = op("foreach_perturb_")(
            params, seeds.to(device), coeffs.to(device), streams, decay, distribution
        )
        assert result is None
        for (param, memory), expected in zip(held, values, strict=True):
            assert_same_bits(param.cpu(), expected)
            assert_guarded(param, memory)


def test_foreach_sees_new_streams_and_new_memory(op: Callable, device: str, rng: torch.Generator) -> None:
    seeds, coeffs = directions(1, rng)
    for stream in (1, 2):
        for size in (3, 70):
            values = torch.randn(size, generator=rng)
            expected = reference.perturb(values, seeds, coeffs, stream)
            param = values.to(device)
            op("foreach_perturb_")([param], seeds.to(device), coeffs.to(device), [stream])
            assert_same_bits(param.cpu(), expected)


def test_foreach_of_nothing(op: Callable, device: str, rng: torch.Generator) -> None:
    seeds, coeffs = directions(2, rng)
    op("foreach_perturb_")([], seeds.to(device), coeffs.to(device), [])


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_fake(dtype: torch.dtype, assert_fake_agrees: Callable, device: str) -> None:
    param = torch.ones(3, 5, dtype=dtype, device=device)
    seeds, coeffs = torch.tensor([1, 2], device=device), torch.ones(2, device=device)
    assert_fake_agrees("perturb_", param, seeds, coeffs, 4)
    assert_fake_agrees("foreach_perturb_", [param], seeds, coeffs, [4])


BAD_DIRECTIONS: list[tuple[dict[str, Any], str]] = [
    ({"seeds": torch.ones(2, dtype=torch.int32)}, "seeds .*int64"),
    ({"seeds": torch.ones(1, 2, dtype=torch.int64)}, "seeds"),
    ({"seeds": torch.ones(2, dtype=torch.int64, device="meta")}, "seeds must be on .*, got meta"),
    ({"coeffs": torch.ones(2, dtype=torch.float64)}, "coeffs .*float32"),
    ({"coeffs": torch.ones(3)}, "coeffs"),
    ({"distribution": "normal"}, "distribution .*'normal'"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *BAD_DIRECTIONS,
        ({"param": torch.ones(3, dtype=torch.float64)}, "self .*float64"),
        ({"param": torch.ones(3).expand(2, 3)}, "self .*overlap"),
    ],
    ids=name_of,
)
def test_perturb_refuses_and_writes_nothing(
    arguments: dict[str, Any], message: str, op: Callable, device: str
) -> None:
    defaults = {
        "param": torch.ones(3),
        "seeds": torch.tensor([1, 2]),
        "coeffs": torch.ones(2),
        "distribution": "gaussian",
    }
    call = moved({**defaults, **arguments}, device)
    with pytest.raises(RuntimeError, match=f"mobizo::perturb_: .*{message}"):
        op("perturb_")(call["param"], call["seeds"], call["coeffs"], 0, 1.0, call["distribution"])
    assert bool((call["param"] == 1).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *BAD_DIRECTIONS,
        ({"streams": [1]}, "streams"),
        ({"last": torch.ones(3, dtype=torch.float64)}, r"self\[1\] .*float64"),
        ({"last": torch.ones(3).expand(2, 3)}, r"self\[1\] .*overlap"),
        ({"last": torch.ones(3, device="meta")}, "must be on .*, got"),
        ({"last": None}, r"self\[0\] and self\[1\]"),
    ],
    ids=name_of,
)
def test_foreach_refuses_and_writes_nothing(
    arguments: dict[str, Any], message: str, op: Callable, device: str
) -> None:
    defaults = {
        "last": torch.ones(3),
        "seeds": torch.tensor([1, 2]),
        "coeffs": torch.ones(2),
        "streams": [0, 1],
    }
    call = moved({**defaults, "distribution": "gaussian", **arguments}, device)
    first = torch.ones(5, device=device)
    params = [first, first if call["last"] is None else call["last"]]
    with pytest.raises(RuntimeError, match=f"mobizo::foreach_perturb_: .*{message}"):
        op("foreach_perturb_")(
            params, call["seeds"], call["coeffs"], call["streams"], 1.0, call["distribution"]
        )
    assert all(param.is_meta or bool((param == 1).all()) for param in params)
