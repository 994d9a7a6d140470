"""zo_adam, its .out form and foreach_zo_adam_ against the numpy twin, to the bit."""

from __future__ import annotations

import math
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
NUMBERS = (0.9, 0.999, 1e-8)


def state(shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A parameter and both averages."""
    param, exp_avg = torch.randn(shape, generator=rng).to(dtype), 0.1 * torch.randn(shape, generator=rng)
    return param, exp_avg, 0.01 * torch.rand(shape, generator=rng)


@every_kind_of_update
def test_step(
    form: str,
    dtype: torch.dtype,
    distribution: str,
    shape: tuple[int, ...],
    decay: float,
    rng: torch.Generator,
) -> None:
    tensors = state(shape, dtype, rng)
    args = (*directions(5, rng), LR, 17, *NUMBERS, decay, distribution)
    *expected, expected_norm = reference.zo_adam(*tensors, *args)
    if form == "functional":
        norm = ops.zo_adam(*tensors, *args)
    else:
        norm = poisoned(1)
        assert torch.ops.mobizo.zo_adam.out(*tensors, *args, out=norm) is norm
    for tensor, updated in zip(tensors, expected, strict=True):
        assert_same_bits(tensor, updated)
    assert_norm(norm, expected_norm)


@given(
    size=st.integers(0, 4200),
    count=st.integers(0, 6),
    lr=st.floats(0, 1, width=32),
    beta1=st.sampled_from([0.0, 0.9, 1.0]),
    beta2=st.sampled_from([0.0, 0.99, 0.9999]),
    eps=st.sampled_from([0.0, 1e-8, 1e-3]),
    decay=st.sampled_from([0.0, 0.999, 1.0]),
    dtype=st.sampled_from(DTYPES),
    distribution=st.sampled_from(DISTRIBUTIONS),
    draw=st.integers(0, 2**32),
)
def test_any_size_and_numbers(
    size: int,
    count: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    dtype: torch.dtype,
    distribution: str,
    draw: int,
) -> None:
    rng = torch.Generator().manual_seed(draw)
    tensors = state((size,), dtype, rng)
    args = (*directions(count, rng), torch.tensor([lr]), -3, beta1, beta2, eps, decay, distribution)
    *expected, _ = reference.zo_adam(*tensors, *args)
    ops.zo_adam(*tensors, *args)
    for tensor, updated in zip(tensors, expected, strict=True):
        assert_same_bits(tensor, updated)


def test_extreme_values() -> None:
    extremes = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-45, 1e-30, 1.0])
    param, exp_avg, exp_avg_sq = (
        values.reshape(-1).clone() for values in torch.meshgrid(extremes, extremes, extremes, indexing="ij")
    )
    for coefficient in (0.0, 1e-44, 1e-20, 1e25):
        args = (torch.tensor([1]), torch.tensor([coefficient]), LR, 9, *NUMBERS)
        *expected, _ = reference.zo_adam(param, exp_avg, exp_avg_sq, *args)
        got = (param.clone(), exp_avg.clone(), exp_avg_sq.clone())
        ops.zo_adam(*got, *args)
        for tensor, updated in zip(got, expected, strict=True):
            assert_same_bits(tensor, updated)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_is_adamw_of_torch(weight_decay: float, rng: torch.Generator) -> None:
    """Five steps against torch.optim.AdamW in float64, fed with the materialised gradient."""
    param = torch.randn(300, generator=rng)
    exp_avg, exp_avg_sq = torch.zeros(300), torch.zeros(300)
    peer = param.double().requires_grad_()
    # eps = 0: torch adds it to the corrected average, the efficient form to the plain one.
    adamw = torch.optim.AdamW([peer], lr=0.02, betas=(0.8, 0.95), eps=0, weight_decay=weight_decay)
    for step in range(1, 6):
        seeds, slopes = directions(4, rng, scale=1.0)
        z = torch.stack([torch.from_numpy(reference.noise(300, int(seed), 8)) for seed in seeds])
        peer.grad = (slopes.double()[:, None] * z.double()).mean(0)
        adamw.step()
        lr = torch.tensor([0.02 * math.sqrt(1 - 0.95**step) / (1 - 0.8**step)])
        decay = 1 - 0.02 * weight_decay
        ops.zo_adam(param, exp_avg, exp_avg_sq, seeds, slopes / 4, lr, 8, 0.8, 0.95, 0.0, decay)
    torch.testing.assert_close(param.double(), peer.detach(), rtol=0, atol=1e-5)


def test_non_contiguous(rng: torch.Generator) -> None:
    param, exp_avg, exp_avg_sq = state((13, 9), torch.float32, rng)
    args = (*directions(3, rng), LR, 2, *NUMBERS)
    *expected, expected_norm = reference.zo_adam(param, exp_avg, exp_avg_sq, *args)
    param, exp_avg, exp_avg_sq = strided(param), exp_avg.t().contiguous().t(), strided(exp_avg_sq)
    assert_norm(ops.zo_adam(param, exp_avg, exp_avg_sq, *args), expected_norm)
    for tensor, updated in zip((param, exp_avg, exp_avg_sq), expected, strict=True):
        assert_same_bits(tensor.contiguous(), updated)
    assert gaps_untouched(param)
    assert gaps_untouched(exp_avg_sq)


def test_foreach_is_a_step_of_each(rng: torch.Generator) -> None:
    shapes = [(3, 5), (0,), (2050,), (), (129, 3)]
    each = [state(shape, DTYPES[i % 3], rng) for i, shape in enumerate(shapes)]
    each[4] = (strided(each[4][0]), strided(each[4][1]), each[4][2])
    streams = [3, -4, 2**63 - 1, 0, -(2**63)]
    seeds, coeffs = directions(4, rng)
    for distribution in DISTRIBUTIONS:
        expected = [
            reference.zo_adam(*tensors, seeds, coeffs, LR, stream, *NUMBERS, 0.95, distribution)[:3]
            for tensors, stream in zip(each, streams, strict=True)
        ]
        lists = (list(tensors) for tensors in zip(*each, strict=True))
        ops.foreach_zo_adam_(*lists, seeds, coeffs, LR, streams, *NUMBERS, 0.95, distribution)
        for tensors, updated in zip(each, expected, strict=True):
            for tensor, wanted in zip(tensors, updated, strict=True):
                assert_same_bits(tensor.contiguous(), wanted)
    ops.foreach_zo_adam_([], [], [], seeds, coeffs, LR, [], *NUMBERS)


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"param": torch.ones(3, dtype=torch.int64)}, "param.* must be float32, bfloat16 or float16, got int64"),
    ({"exp_avg": torch.ones(3, dtype=torch.bfloat16)}, "exp_avg.* must be float32, got bfloat16"),
    ({"exp_avg_sq": torch.ones(3, dtype=torch.float16)}, "exp_avg_sq.* must be float32, got float16"),
    ({"exp_avg": torch.ones(4)}, r"exp_avg.* must have the shape of its parameter, \(3,\), got \(4,\)"),
    ({"exp_avg_sq": torch.ones(1, 3)}, r"exp_avg_sq.* must have the shape .*\(3,\), got \(1, 3\)"),
    ({"lr": torch.tensor(1.0)}, r"lr must be float32 of shape \(1,\), got float32 of shape \(\)"),
    ({"lr": torch.ones(1, dtype=torch.float64)}, r"lr must be float32 of shape \(1,\), got float64"),
    ({"lr": torch.ones(2)}, r"lr must be float32 of shape \(1,\), got float32 of shape \(2,\)"),
    ({"seeds": torch.ones(2)}, "seeds .*int64"),
    ({"coeffs": torch.ones(3)}, "coeffs"),
    ({"distribution": "uniform"}, "distribution .*'uniform'"),
]
COMMON = {
    "seeds": torch.tensor([1, 2]),
    "coeffs": torch.ones(2),
    "lr": torch.ones(1),
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
}
TENSORS = ("param", "exp_avg", "exp_avg_sq")


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
    defaults = {**{name: torch.ones(3) for name in TENSORS}, **COMMON, "stream": 0}
    call = on_device({**defaults, **arguments}, device)
    op = torch.ops.mobizo.zo_adam.out if "out" in call else ops.zo_adam
    with pytest.raises(RuntimeError, match=f"mobizo::zo_adam: .*{message}"):
        op(**call)
    if device == "cpu":
        assert all(bool((call[name] == 1).all()) for name in (*TENSORS, "out") if name in call)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *BAD_ARGUMENTS,
        ({"streams": [1]}, r"streams must have one entry per parameter \(2\), got 1"),
        ({"exp_avgs": []}, r"exp_avgs must have one entry per parameter \(2\), got 0"),
        ({"exp_avg_sqs": []}, r"exp_avg_sqs must have one entry per parameter \(2\), got 0"),
    ],
    ids=name_of,
)
def test_foreach_refuses_and_writes_nothing(arguments: dict[str, Any], message: str, device: str) -> None:
    call = on_device({**COMMON, "streams": [0, 1], **arguments}, device)
    lists = {
        f"{name}s": [torch.ones(5, device=device), call.pop(name, torch.ones(3, device=device))]
        for name in TENSORS
    }
    call = {**lists, **call}
    with pytest.raises(RuntimeError, match=f"mobizo::foreach_zo_adam_: .*{message}"):
        ops.foreach_zo_adam_(**call)
    if device == "cpu":
        assert all(bool((tensor == 1).all()) for tensors in lists.values() for tensor in tensors)


@pytest.mark.parametrize("shared", [("param", "exp_avg"), ("param", "exp_avg_sq"), ("exp_avg", "exp_avg_sq")])
def test_refuses_tensors_that_share_memory(shared: tuple[str, str]) -> None:
    call: dict[str, Any] = {**{name: torch.ones(3) for name in TENSORS}, **COMMON, "stream": 0}
    call[shared[1]] = call[shared[0]]
    with pytest.raises(RuntimeError, match=f"{shared[0]} and {shared[1]} must not share memory"):
        ops.zo_adam(**call)
    assert all(bool((call[name] == 1).all()) for name in TENSORS)
