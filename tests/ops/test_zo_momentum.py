"""zo_momentum, its .out form and foreach_zo_momentum_ against the numpy twin, to the bit."""

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


@every_kind_of_update
def test_step(
    form: str,
    dtype: torch.dtype,
    distribution: str,
    shape: tuple[int, ...],
    decay: float,
    rng: torch.Generator,
) -> None:
    param, momentum = torch.randn(shape, generator=rng).to(dtype), torch.randn(shape, generator=rng)
    args = (*directions(5, rng), 17, 0.9, decay, distribution)
    expected, expected_momentum, expected_norm = reference.zo_momentum(param, momentum, *args)
    if form == "functional":
        norm = ops.zo_momentum(param, momentum, *args)
    else:
        norm = poisoned(1)
        assert torch.ops.mobizo.zo_momentum.out(param, momentum, *args, out=norm) is norm
    assert_same_bits(momentum, expected_momentum)
    assert_same_bits(param, expected)
    assert_norm(norm, expected_norm)


@given(
    size=st.integers(0, 4200),
    count=st.integers(0, 6),
    beta=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    decay=st.sampled_from([0.0, 0.999, 1.0]),
    dtype=st.sampled_from(DTYPES),
    distribution=st.sampled_from(DISTRIBUTIONS),
    draw=st.integers(0, 2**32),
)
def test_any_size(
    size: int, count: int, beta: float, decay: float, dtype: torch.dtype, distribution: str, draw: int
) -> None:
    rng = torch.Generator().manual_seed(draw)
    param, momentum = torch.randn(size, generator=rng).to(dtype), torch.randn(size, generator=rng)
    args = (*directions(count, rng), -3, beta, decay, distribution)
    expected, expected_momentum, _ = reference.zo_momentum(param, momentum, *args)
    ops.zo_momentum(param, momentum, *args)
    assert_same_bits(momentum, expected_momentum)
    assert_same_bits(param, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_is_sgd_with_momentum_of_torch(dtype: torch.dtype, rng: torch.Generator) -> None:
    """Three steps against torch.optim.SGD in float64, fed with the materialised gradient."""
    start = torch.randn(300, generator=rng).to(dtype)
    param, momentum = start.clone(), torch.zeros(300)
    peer = start.double().requires_grad_()
    sgd = torch.optim.SGD([peer], lr=0.05, momentum=0.9)
    for _ in range(3):
        seeds, slopes = directions(4, rng, scale=1.0)
        z = torch.stack([torch.from_numpy(reference.noise(300, int(seed), 8)) for seed in seeds])
        peer.grad = (slopes.double()[:, None] * z.double()).mean(0)
        sgd.step()
        ops.zo_momentum(param, momentum, seeds, -0.05 / 4 * slopes, 8, 0.9)
    torch.testing.assert_close(
        param.double(), peer.detach(), rtol=0, atol=8 * torch.finfo(dtype).eps * float(start.abs().max())
    )


def test_non_contiguous(rng: torch.Generator) -> None:
    values, state = torch.randn(13, 9, generator=rng), torch.randn(13, 9, generator=rng)
    args = (*directions(3, rng), 2, 0.9, 0.5)
    expected, expected_state, expected_norm = reference.zo_momentum(values, state, *args)
    param, momentum = strided(values), state.t().contiguous().t()
    assert_norm(ops.zo_momentum(param, momentum, *args), expected_norm)
    assert_same_bits(param.contiguous(), expected)
    assert_same_bits(momentum.contiguous(), expected_state)
    assert gaps_untouched(param)


def test_foreach_is_a_step_of_each(rng: torch.Generator) -> None:
    shapes = [(3, 5), (0,), (2050,), (), (129, 3)]
    params = [torch.randn(s, generator=rng).to(DTYPES[i % 3]) for i, s in enumerate(shapes)]
    momenta = [torch.randn(s, generator=rng) for s in shapes]
    params[4], momenta[0] = strided(params[4]), strided(momenta[0])
    streams = [3, -4, 2**63 - 1, 0, -(2**63)]
    seeds, coeffs = directions(4, rng)
    for distribution in DISTRIBUTIONS:
        expected = [
            reference.zo_momentum(*given, seeds, coeffs, stream, 0.9, 0.95, distribution)
            for *given, stream in zip(params, momenta, streams, strict=True)
        ]
        ops.foreach_zo_momentum_(params, momenta, seeds, coeffs, streams, 0.9, 0.95, distribution)
        for param, momentum, (updated, state, _) in zip(params, momenta, expected, strict=True):
            assert_same_bits(param.contiguous(), updated)
            assert_same_bits(momentum.contiguous(), state)
    ops.foreach_zo_momentum_([], [], seeds, coeffs, [], 0.9)


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"param": torch.ones(3, dtype=torch.int64)}, "param.* must be float32, bfloat16 or float16, got int64"),
    ({"momentum": torch.ones(3, dtype=torch.bfloat16)}, "moment.* must be float32, got bfloat16"),
    ({"momentum": torch.ones(4)}, r"moment.* must have the shape of its parameter, \(3,\), got \(4,\)"),
    ({"momentum": torch.ones(3, 1)}, r"moment.* must have the shape of its parameter, \(3,\), got \(3, 1\)"),
    ({"seeds": torch.ones(2)}, "seeds .*int64"),
    ({"coeffs": torch.ones(3)}, "coeffs"),
    ({"distribution": "uniform"}, "distribution .*'uniform'"),
]


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
    defaults = {
        "param": torch.ones(3),
        "momentum": torch.ones(3),
        "seeds": torch.tensor([1, 2]),
        "coeffs": torch.ones(2),
        "stream": 0,
        "beta": 0.9,
    }
    call = on_device({**defaults, **arguments}, device)
    op = torch.ops.mobizo.zo_momentum.out if "out" in call else ops.zo_momentum
    with pytest.raises(RuntimeError, match=f"mobizo::zo_momentum: .*{message}"):
        op(**call)
    if device == "cpu":
        assert all(bool((call[name] == 1).all()) for name in ("param", "momentum", "out") if name in call)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *BAD_ARGUMENTS,
        ({"streams": [1]}, r"streams must have one entry per parameter \(2\), got 1"),
        ({"momenta": []}, r"momenta must have one entry per parameter \(2\), got 0"),
    ],
    ids=name_of,
)
def test_foreach_refuses_and_writes_nothing(arguments: dict[str, Any], message: str, device: str) -> None:
    defaults = {"seeds": torch.tensor([1, 2]), "coeffs": torch.ones(2), "streams": [0, 1], "beta": 0.9}
    call = on_device({**defaults, **arguments}, device)
    params = [torch.ones(5, device=device), call.pop("param", torch.ones(3, device=device))]
    momenta = [torch.ones(5, device=device), call.pop("momentum", torch.ones(3, device=device))]
    momenta = call.pop("momenta", momenta)
    with pytest.raises(RuntimeError, match=f"mobizo::foreach_zo_momentum_: .*{message}"):
        ops.foreach_zo_momentum_(params, momenta, **call)
    if device == "cpu":
        assert all(bool((tensor == 1).all()) for tensor in (*params, *momenta))


def test_refuses_tensors_that_share_memory() -> None:
    param, row, one = torch.ones(3), torch.ones(3), (torch.tensor([1]), torch.ones(1))
    with pytest.raises(RuntimeError, match="param and momentum must not share memory"):
        ops.zo_momentum(param, param, *one, 0, 0.9)
    with pytest.raises(RuntimeError, match="momentum must not overlap itself"):
        ops.zo_momentum(torch.ones(4, 3), row.expand(4, 3), *one, 0, 0.9)
    with pytest.raises(RuntimeError, match=r"momenta\[0\] and momenta\[1\] must not share memory"):
        ops.foreach_zo_momentum_([param, torch.ones(3)], [row, row], *one, [0, 1], 0.9)
    assert bool((param == 1).all())
    assert bool((row == 1).all())
