"""zo_sign, its .out form and foreach_zo_sign_ against the numpy twin, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    assert_norm,
    assert_same_bits,
    directions,
    every_kind_of_update,
    gaps_untouched,
    name_of,
    on_device,
    poisoned,
    strided,
)
from hypothesis import given
from hypothesis import strategies as st

from mobizo_kernels import ops, reference

LR = torch.tensor([0.01])


@every_kind_of_update
def test_step(
    form: str,
    dtype: torch.dtype,
    distribution: str,
    shape: tuple[int, ...],
    decay: float,
    rng: torch.Generator,
) -> None:
    param = torch.randn(shape, generator=rng).to(dtype)
    args = (*directions(5, rng), LR, 17, decay, distribution)
    expected, expected_norm = reference.zo_sign(param, *args)
    if form == "functional":
        norm = ops.zo_sign(param, *args)
    else:
        norm = poisoned(1)
        assert torch.ops.mobizo.zo_sign.out(param, *args, out=norm) is norm
    assert_same_bits(param, expected)
    assert_norm(norm, expected_norm)


@given(
    size=st.integers(0, 4200),
    count=st.integers(0, 6),
    lr=st.floats(0, 1, width=32),
    decay=st.sampled_from([0.0, 0.999, 1.0]),
    dtype=st.sampled_from(DTYPES),
    distribution=st.sampled_from(DISTRIBUTIONS),
    draw=st.integers(0, 2**32),
)
def test_any_size(
    size: int, count: int, lr: float, decay: float, dtype: torch.dtype, distribution: str, draw: int
) -> None:
    rng = torch.Generator().manual_seed(draw)
    param = torch.randn(size, generator=rng).to(dtype)
    args = (*directions(count, rng), torch.tensor([lr]), -3, decay, distribution)
    expected, _ = reference.zo_sign(param, *args)
    ops.zo_sign(param, *args)
    assert_same_bits(param, expected)


def test_the_sign_of_nothing_is_zero() -> None:
    """Opposite coefficients of one seed cancel to the bit: nothing moves, zeros keep their sign."""
    param = torch.tensor([1.0, -1.0, 0.0, -0.0, 1e-45]).repeat(9)
    before = param.clone()
    norm = ops.zo_sign(param, torch.tensor([5, 5]), torch.tensor([0.25, -0.25]), LR, 0)
    assert_same_bits(param, before)
    assert norm.item() == 0


@pytest.mark.parametrize("coefficient", [0.0, -0.0, 1e-45, torch.inf, torch.nan])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_extreme_values(coefficient: float, distribution: str) -> None:
    extremes = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, 1e-45]
    for lr in (LR, torch.tensor([torch.inf]), torch.zeros(1), -LR):
        param = torch.tensor(extremes).repeat(40)
        args = (torch.tensor([1]), torch.tensor([coefficient]), lr, 9, 1.0, distribution)
        expected, _ = reference.zo_sign(param, *args)
        ops.zo_sign(param, *args)
        assert_same_bits(param, expected)


def test_every_value_moves_by_lr_against_the_gradient(rng: torch.Generator) -> None:
    seeds, slopes = directions(4, rng)
    z = torch.stack([torch.from_numpy(reference.noise(300, int(seed), 8)) for seed in seeds]).double()
    param = torch.zeros(300)
    norm = ops.zo_sign(param, seeds, slopes, LR, 8)
    assert torch.equal(param, -LR * (slopes.double() @ z).sign().float())
    assert_norm(norm, LR.double().item() * 300**0.5)


def test_non_contiguous(rng: torch.Generator) -> None:
    values = torch.randn(13, 9, generator=rng)
    args = (*directions(3, rng), LR, 2, 0.5)
    expected, expected_norm = reference.zo_sign(values, *args)
    param = strided(values)
    assert_norm(ops.zo_sign(param, *args), expected_norm)
    assert_same_bits(param.contiguous(), expected)
    assert gaps_untouched(param)


def test_foreach_is_a_step_of_each(rng: torch.Generator) -> None:
    shapes = [(3, 5), (0,), (2050,), (), (129, 3)]
    params = [torch.randn(s, generator=rng).to(DTYPES[i % 3]) for i, s in enumerate(shapes)]
    params[4] = strided(params[4])
    streams = [3, -4, 2**63 - 1, 0, -(2**63)]
    seeds, coeffs = directions(4, rng)
    for distribution in DISTRIBUTIONS:
        expected = [
            reference.zo_sign(param, seeds, coeffs, LR, stream, 0.95, distribution)[0]
            for param, stream in zip(params, streams, strict=True)
        ]
        ops.foreach_zo_sign_(params, seeds, coeffs, LR, streams, 0.95, distribution)
        for param, updated in zip(params, expected, strict=True):
            assert_same_bits(param.contiguous(), updated)
    ops.foreach_zo_sign_([], seeds, coeffs, LR, [])


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"param": torch.ones(3, dtype=torch.int64)}, "param.* must be float32, bfloat16 or float16, got int64"),
    ({"lr": torch.tensor(1.0)}, r"lr must be float32 of shape \(1,\), got float32 of shape \(\)"),
    ({"lr": torch.ones(1, dtype=torch.float64)}, r"lr must be float32 of shape \(1,\), got float64"),
    ({"seeds": torch.ones(2)}, "seeds .*int64"),
    ({"coeffs": torch.ones(3)}, "coeffs"),
    ({"distribution": "uniform"}, "distribution .*'uniform'"),
]
COMMON = {"seeds": torch.tensor([1, 2]), "coeffs": torch.ones(2), "lr": torch.ones(1)}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *BAD_ARGUMENTS,
        ({"out": torch.ones(2)}, "out must be float32 of shape"),
        ({"out": torch.ones(1, dtype=torch.float64)}, "out .*float32"),
    ],
    ids=name_of,
)
def test_refuses_and_writes_nothing(arguments: dict[str, Any], message: str, device: str) -> None:
    call = on_device({"param": torch.ones(3), **COMMON, "stream": 0, **arguments}, device)
    op = torch.ops.mobizo.zo_sign.out if "out" in call else ops.zo_sign
    with pytest.raises(RuntimeError, match=f"mobizo::zo_sign: .*{message}"):
        op(**call)
    if device == "cpu":
        assert all(bool((call[name] == 1).all()) for name in ("param", "out") if name in call)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [*BAD_ARGUMENTS, ({"streams": [1]}, r"streams must have one entry per parameter \(2\), got 1")],
    ids=name_of,
)
def test_foreach_refuses_and_writes_nothing(arguments: dict[str, Any], message: str, device: str) -> None:
    call = on_device({**COMMON, "streams": [0, 1], **arguments}, device)
    params = [torch.ones(5, device=device), call.pop("param", torch.ones(3, device=device))]
    with pytest.raises(RuntimeError, match=f"mobizo::foreach_zo_sign_: .*{message}"):
        ops.foreach_zo_sign_(params, **call)
    if device == "cpu":
        assert all(bool((param == 1).all()) for param in params)


def test_refuses_tensors_that_share_memory() -> None:
    param, row, one = torch.ones(3), torch.ones(3), (torch.tensor([1]), torch.ones(1), LR)
    with pytest.raises(RuntimeError, match="param must not overlap itself"):
        ops.zo_sign(row.expand(4, 3), *one, 0)
    with pytest.raises(RuntimeError, match=r"params\[0\] and params\[1\] must not share memory"):
        ops.foreach_zo_sign_([param, param], *one, [0, 1])
    assert bool((param == 1).all())
    assert bool((row == 1).all())
