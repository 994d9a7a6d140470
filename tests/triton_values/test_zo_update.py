"""zo_update and its .out form in Triton: the bits of perturb_, and the norm of what changed in storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarded_memory import assert_guarded, guarded, moved
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    assert_norm,
    assert_norm_of_gpu,
    assert_same_bits,
    covering,
    directions,
    gaps_untouched,
    name_of,
    poisoned,
)

from mobizo_kernels import reference
from mobizo_kernels.triton.launch import SUM_BLOCK, store_norm


@pytest.mark.parametrize(
    ("shape", "distribution", "dtype", "form"),
    covering([(), (0, 2), (3,), (7, 19), (2, 2051)], DISTRIBUTIONS, DTYPES, ("zo_update", "zo_update.out")),
    ids=name_of,
)
def test_update(
    form: str,
    dtype: torch.dtype,
    distribution: str,
    shape: tuple[int, ...],
    op: Callable,
    device: str,
    rng: torch.Generator,
) -> None:
    values = torch.randn(shape, generator=rng).to(dtype)
    seeds, coeffs = directions(3, rng)
    expected, expected_norm = reference.zo_update(values, seeds, coeffs, 17, 0.875, distribution)
    param, memory = guarded(values, device)
    args = (param, seeds.to(device), coeffs.to(device), 17, 0.875, distribution)
    if form == "zo_update":
        norm = op(form)(*args)
    else:
        norm = poisoned(1).to(device)
        assert op(form)(*args, out=norm) is norm
    assert_same_bits(param.cpu(), expected)
    assert_norm_of_gpu(norm, expected_norm)
    assert_guarded(param, memory)


@pytest.mark.parametrize("blocks", [0, 1, 1023, 1024, 1025, 5000, 1024 * 1024 + 1])
def test_norm_sums_every_block(blocks: int, device: str, rng: torch.Generator) -> None:
    """By one program, by one for each 1024 blocks, and those by others."""
    squares = torch.rand(blocks, generator=rng, dtype=torch.float64)
    guarded = torch.cat([squares, poisoned(SUM_BLOCK, dtype=torch.float64)]).to(device)
    norm = poisoned(1).to(device)
    store_norm(guarded[:blocks], norm)
    assert_norm(norm, float(squares.sum().sqrt()))


def test_norm_is_of_stored_values(op: Callable, device: str, rng: torch.Generator) -> None:
    """Steps far below the spacing of bfloat16 change nothing, and the norm says so."""
    param = torch.ones(64, dtype=torch.bfloat16, device=device)
    seeds, coeffs = directions(1, rng, scale=1e-6)
    assert op("zo_update")(param, seeds.to(device), coeffs.to(device), 1).item() == 0
    assert bool((param == 1).all())


@pytest.mark.filterwarnings("ignore:overflow")  # of NumPy, in the interpreter
@pytest.mark.parametrize("coefficient", [1e-36, 1e-30, 1e-25, 1e-13, 1e-11, 1e15, 1e20, 1e30])
def test_norm_of_tiny_and_huge_changes(coefficient: float, op: Callable, device: str) -> None:
    """Their squares are beyond float32."""
    values = torch.zeros(2500)
    seeds, coeffs = torch.tensor([4]), torch.tensor([coefficient])
    _, expected = reference.zo_update(values, seeds, coeffs, 3)
    assert expected > 0
    assert_norm_of_gpu(op("zo_update")(values.to(device), seeds.to(device), coeffs.to(device), 3), expected)


@pytest.mark.filterwarnings("ignore:overflow")  # of NumPy, in the interpreter
@pytest.mark.parametrize("place", ["apart", "together"])
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1e-30), (0.0, 1.0), (1e-40, 1e-25), (1e-25, 1e-13), (1e-20, 1.0), (1e-25, 1e20), (1e15, 1e20)],
)
def test_norm_of_tiny_beside_huge_changes(
    low: float, high: float, place: str, op: Callable, device: str, rng: torch.Generator
) -> None:
    """A parameter that halves, in blocks of one size of changes or of two."""
    values = torch.cat([torch.full((4096,), low), torch.full((4096,), high)])
    if place == "together":
        values = values[torch.randperm(8192, generator=rng)]
    seeds, coeffs = directions(0, rng)
    _, expected = reference.zo_update(values, seeds, coeffs, 1, 0.5)
    assert_norm_of_gpu(
        op("zo_update")(values.to(device), seeds.to(device), coeffs.to(device), 1, 0.5), expected
    )


@pytest.mark.filterwarnings("ignore:overflow")  # of NumPy, in the interpreter
@pytest.mark.parametrize(
    ("special", "expected"),
    [([3e38], torch.inf), ([torch.inf], torch.nan), ([torch.nan], torch.nan), ([3e38, torch.nan], torch.nan)],
    ids=["inf", "inf-inf", "nan", "inf-and-nan"],
)
@pytest.mark.parametrize("rest", [0.0, 1e-25, 1.0, 1e20])
def test_norm_of_changes_that_are_not_finite(
    special: list[float], expected: float, rest: float, op: Callable, device: str, rng: torch.Generator
) -> None:
    """Whatever the changes beside them: 3e38 leaves the range of float32, as its double does."""
    values = torch.full((3000,), rest)
    values[:: 3000 // len(special)] = torch.tensor(special)
    seeds, coeffs = directions(0, rng)
    norm = op("zo_update")(values.to(device), seeds.to(device), coeffs.to(device), 1, 2.0)
    assert_norm(norm, expected)


def test_no_seeds(op: Callable, device: str, rng: torch.Generator) -> None:
    values = torch.randn(9, generator=rng)
    seeds, coeffs = directions(0, rng)
    param = values.clone().to(device)
    assert op("zo_update")(param, seeds.to(device), coeffs.to(device), 1).item() == 0
    assert torch.equal(param.cpu(), values)


def test_non_contiguous_parameter(op: Callable, device: str, rng: torch.Generator) -> None:
    values = torch.randn(13, 9, generator=rng)
    seeds, coeffs = directions(3, rng)
    expected, expected_norm = reference.zo_update(values, seeds, coeffs, 2)
    param = poisoned(27, 19).to(device)[1::2, 1::2].copy_(values)
    assert_norm_of_gpu(op("zo_update")(param, seeds.to(device), coeffs.to(device), 2), expected_norm)
    assert_same_bits(param.contiguous().cpu(), expected)
    assert gaps_untouched(param)


def test_a_parameter_of_nan_shows_in_the_norm(op: Callable, device: str) -> None:
    seeds, coeffs = torch.tensor([1], device=device), torch.ones(1, device=device)
    assert op("zo_update")(poisoned(3).to(device), seeds, coeffs, 0).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_fake(dtype: torch.dtype, assert_fake_agrees: Callable, device: str) -> None:
    param = torch.ones(3, 5, dtype=dtype, device=device)
    seeds, coeffs = torch.tensor([1, 2], device=device), torch.ones(2, device=device)
    assert_fake_agrees("zo_update", param, seeds, coeffs, 4)
    assert_fake_agrees("zo_update.out", param, seeds, coeffs, 4, out=torch.empty(1, device=device))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"param": torch.ones(3, dtype=torch.int64)}, "param .*int64"),
        ({"param": torch.ones(3).expand(2, 3)}, "param .*overlap"),
        ({"seeds": torch.ones(2)}, "seeds .*int64"),
        ({"coeffs": torch.ones(3)}, "coeffs"),
        ({"distribution": "uniform"}, "distribution .*'uniform'"),
        ({"out": torch.ones(2)}, "out"),
        ({"out": torch.ones(1, dtype=torch.float64)}, "out .*float32"),
        ({"out": torch.tensor(1.0)}, "out"),
    ],
    ids=name_of,
)
def test_refuses_and_writes_nothing(
    arguments: dict[str, Any], message: str, op: Callable, device: str
) -> None:
    defaults = {
        "param": torch.ones(3),
        "seeds": torch.tensor([1, 2]),
        "coeffs": torch.ones(2),
        "distribution": "gaussian",
    }
    call = moved({**defaults, "out": torch.ones(1), **arguments}, device)
    args = (call["param"], call["seeds"], call["coeffs"], 0, 1.0, call["distribution"])
    with pytest.raises(RuntimeError, match=f"mobizo::zo_update: .*{message}"):
        op("zo_update.out")(*args, out=call["out"])
    assert bool((call["param"] == 1).all())
    assert bool((call["out"] == 1).all())
