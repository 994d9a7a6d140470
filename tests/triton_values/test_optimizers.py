"""Momentum, Adam and sign steps in Triton, in all their forms, against the numpy twins to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from guarded_memory import assert_guarded, guarded, moved
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    assert_norm_of_gpu,
    assert_same_bits,
    covering,
    directions,
    gaps_untouched,
    name_of,
    poisoned,
)

from mobizo_kernels import reference

# Names of the tensors that an op writes, and of the lists of its foreach form.
WRITTEN = {
    "zo_momentum": {"param": "params", "momentum": "momenta"},
    "zo_adam": {"param": "params", "exp_avg": "exp_avgs", "exp_avg_sq": "exp_avg_sqs"},
    "zo_sign": {"param": "params"},
}
REFERENCES = {
    "zo_momentum": reference.zo_momentum,
    "zo_adam": reference.zo_adam,
    "zo_sign": reference.zo_sign,
}
NUMBERS: dict[str, dict[str, Any]] = {
    "zo_momentum": {"beta": 0.9},
    "zo_adam": {"lr": torch.tensor([0.01]), "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "zo_sign": {"lr": torch.tensor([0.01])},
}


def tensors_of(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator
) -> list[torch.Tensor]:
    """A parameter and its state, none of it negative, as a mean of squares is not."""
    state = [torch.rand(shape, generator=rng) for _ in list(WRITTEN[name])[1:]]
    return [torch.randn(shape, generator=rng).to(dtype), *state]


def arguments(name: str, count: int, decay: float, distribution: str, rng: torch.Generator) -> dict[str, Any]:
    """All but the tensors that are written and the stream."""
    seeds, coeffs = directions(count, rng)
    rest = {"decay": decay, "distribution": distribution}
    return {"seeds": seeds, "coeffs": coeffs, **NUMBERS[name], **rest}


def on(device: str, given: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}


@pytest.mark.parametrize(
    ("shape", "distribution", "dtype", "form"),
    covering([(), (0, 2), (7, 19), (2, 2051)], DISTRIBUTIONS, DTYPES, ("", ".out")),
    ids=name_of,
)
@pytest.mark.parametrize("name", WRITTEN)
def test_step(
    name: str,
    form: str,
    dtype: torch.dtype,
    distribution: str,
    shape: tuple[int, ...],
    op: Callable,
    device: str,
    rng: torch.Generator,
) -> None:
    values = tensors_of(name, shape, dtype, rng)
    given = arguments(name, 3, 0.875, distribution, rng)
    *expected, expected_norm = REFERENCES[name](*values, **given, stream=17)
    held = [guarded(value, device) for value in values]
    call = {**dict(zip(WRITTEN[name], (tensor for tensor, _ in held), strict=True)), **on(device, given)}
    if form == ".out":
        norm = poisoned(1).to(device)
        assert op(f"{name}.out")(**call, stream=17, out=norm) is norm
    else:
        norm = op(name)(**call, stream=17)
    for (tensor, memory), wanted in zip(held, expected, strict=True):
        assert_same_bits(tensor.cpu(), wanted)
        assert_guarded(tensor, memory)
    assert_norm_of_gpu(norm, expected_norm)


@pytest.mark.parametrize("count", [0, 1, 9], ids="{}-seeds".format)
@pytest.mark.parametrize("name", WRITTEN)
def test_any_number_of_seeds(name: str, count: int, op: Callable, device: str, rng: torch.Generator) -> None:
    values = tensors_of(name, (1100,), torch.bfloat16, rng)
    given = arguments(name, count, 1.0, "gaussian", rng)
    *expected, _ = REFERENCES[name](*values, **given, stream=-(2**63))
    got = [value.to(device) for value in values]
    op(name)(*got, **on(device, given), stream=-(2**63))
    for tensor, wanted in zip(got, expected, strict=True):
        assert_same_bits(tensor.cpu(), wanted)


@pytest.mark.parametrize("coefficient", [0.0, 1e-44, 1e-20, 1e25, torch.nan])
@pytest.mark.parametrize("name", WRITTEN)
def test_extreme_values(name: str, coefficient: float, op: Callable, device: str) -> None:
    extremes = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-45, 1e-30, 1.0])
    grid = torch.meshgrid([extremes] * len(WRITTEN[name]), indexing="ij")
    values = [axis.reshape(-1).clone() for axis in grid]
    for lr in (0.01, 0.0, -0.0):
        given = {**NUMBERS[name], "seeds": torch.tensor([1]), "coeffs": torch.tensor([coefficient])}
        given |= {"lr": torch.tensor([lr])} if "lr" in given else {}
        *expected, _ = REFERENCES[name](*values, **given, stream=9)
        got = [value.to(device, copy=True) for value in values]
        op(name)(*got, **on(device, given), stream=9)
        for tensor, wanted in zip(got, expected, strict=True):
            assert_same_bits(tensor.cpu(), wanted)


@pytest.mark.parametrize("name", WRITTEN)
def test_non_contiguous(name: str, op: Callable, device: str, rng: torch.Generator) -> None:
    """Whichever of the tensors it is."""
    for odd in range(len(WRITTEN[name])):
        values = tensors_of(name, (13, 9), torch.float32, rng)
        given = arguments(name, 2, 0.5, "gaussian", rng)
        *expected, expected_norm = REFERENCES[name](*values, **given, stream=2)
        for form in ("single", "foreach"):
            got = [value.to(device, copy=True) for value in values]
            got[odd] = poisoned(27, 19).to(device)[1::2, 1::2].copy_(values[odd])
            if form == "single":
                assert_norm_of_gpu(op(name)(*got, **on(device, given), stream=2), expected_norm)
            else:
                op(f"foreach_{name}_")(*([tensor] for tensor in got), **on(device, given), streams=[2])
            for tensor, wanted in zip(got, expected, strict=True):
                assert_same_bits(tensor.contiguous().cpu(), wanted)
            assert gaps_untouched(got[odd])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", WRITTEN)
def test_foreach_is_a_step_of_each(
    name: str, distribution: str, op: Callable, device: str, rng: torch.Generator
) -> None:
    shapes = [(3, 5), (0,), (4100,), (), (2048,), (129, 3)]
    each = [tensors_of(name, shape, DTYPES[i % 3], rng) for i, shape in enumerate(shapes)]
    held = [[guarded(v, device, before=i % 2) for v in values] for i, values in enumerate(each)]
    streams = [3, -4, 2**63 - 1, 0, -(2**63), 5]
    given = arguments(name, 3, 0.95, distribution, rng)
    for _ in range(2):  # the second call finds the table of the first
        each = [
            REFERENCES[name](*values, **given, stream=stream)[:-1]
            for values, stream in zip(each, streams, strict=True)
        ]
        lists = [[tensor for tensor, _ in column] for column in zip(*held, strict=True)]
        assert op(f"foreach_{name}_")(*lists, **on(device, given), streams=streams) is None
        for row, expected in zip(held, each, strict=True):
            for (tensor, memory), wanted in zip(row, expected, strict=True):
                assert_same_bits(tensor.cpu(), wanted)
                assert_guarded(tensor, memory)


@pytest.mark.parametrize("name", WRITTEN)
def test_foreach_of_nothing(name: str, op: Callable, device: str, rng: torch.Generator) -> None:
    given = on(device, arguments(name, 2, 1.0, "gaussian", rng))
    op(f"foreach_{name}_")(*([] for _ in WRITTEN[name]), **given, streams=[])


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", WRITTEN)
def test_fake(
    name: str, dtype: torch.dtype, assert_fake_agrees: Callable, device: str, rng: torch.Generator
) -> None:
    values = [value.to(device) for value in tensors_of(name, (3, 5), dtype, rng)]
    given = on(device, arguments(name, 2, 1.0, "gaussian", rng))
    assert_fake_agrees(name, *values, **given, stream=4)
    assert_fake_agrees(f"{name}.out", *values, **given, stream=4, out=torch.empty(1, device=device))
    assert_fake_agrees(f"foreach_{name}_", *([value] for value in values), **given, streams=[4])


BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("zo_momentum", {"param": torch.ones(3, dtype=torch.int64)}, "param.* must be float32, .* got int64"),
    ("zo_momentum", {"param": torch.ones(1).expand(3)}, "param.* must not overlap itself"),
    ("zo_momentum", {"momentum": torch.ones(3).half()}, "moment.* must be float32, got float16"),
    ("zo_momentum", {"momentum": torch.ones(1).expand(3)}, "moment.* must not overlap itself"),
    ("zo_momentum", {"momentum": torch.ones(4)}, "moment.* must have the shape of its parameter"),
    ("zo_momentum", {"momentum": torch.ones(3, device="meta")}, "moment.* must be on .*, got meta"),
    ("zo_momentum", {"momentum": "param"}, "param.* and moment.* must not share memory"),
    ("zo_momentum", {"seeds": torch.ones(2)}, "seeds must be int64"),
    ("zo_momentum", {"coeffs": torch.ones(3)}, "coeffs must have the shape of seeds"),
    ("zo_momentum", {"distribution": "normal"}, "distribution .*'normal'"),
    ("zo_adam", {"exp_avg": torch.ones(3).bfloat16()}, "exp_avg.* must be float32, got bfloat16"),
    ("zo_adam", {"exp_avg_sq": torch.ones(3, 1)}, "exp_avg_sq.* must have the shape of its parameter"),
    ("zo_adam", {"exp_avg_sq": "exp_avg"}, "exp_avg.* and exp_avg_sq.* must not share memory"),
    ("zo_adam", {"lr": torch.tensor(1.0)}, r"lr must be float32 of shape \(1,\)"),
    ("zo_adam", {"lr": torch.ones(1, device="meta")}, "lr must be on .*, got meta"),
    ("zo_sign", {"param": torch.ones(3).double()}, "param.* must be float32, .* got float64"),
    ("zo_sign", {"lr": torch.ones(1).double()}, r"lr must be float32 of shape \(1,\), got float64"),
]


@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize(("name", "changes", "message"), BAD_ARGUMENTS)
def test_refuses_and_writes_nothing(
    name: str, changes: dict[str, Any], message: str, foreach: bool, op: Callable, device: str
) -> None:
    call: dict[str, Any] = {written: torch.ones(3) for written in WRITTEN[name]}
    call |= {"seeds": torch.tensor([1, 2]), "coeffs": torch.ones(2), **NUMBERS[name], **changes}
    call = moved(call, device)
    call |= {k: call[v] for k, v in changes.items() if isinstance(v, str) and v in call}
    written = [call[key] for key in WRITTEN[name]]
    if foreach:
        for single, plural in WRITTEN[name].items():
            call[plural] = [call.pop(single)]
    full_name = f"foreach_{name}_" if foreach else name
    with pytest.raises(RuntimeError, match=f"mobizo::{full_name}: {message}"):
        op(full_name)(**call, **({"streams": [0]} if foreach else {"stream": 0}))
    assert all(tensor.is_meta or bool((tensor == 1).all()) for tensor in written)


@pytest.mark.parametrize("name", WRITTEN)
def test_refuses_lists_of_other_lengths(name: str, op: Callable, device: str, rng: torch.Generator) -> None:
    given = on(device, arguments(name, 2, 1.0, "gaussian", rng))
    for short in (*list(WRITTEN[name].values())[1:], "streams"):
        lists: dict[str, Any] = {key: [torch.ones(3, device=device)] for key in WRITTEN[name].values()}
        call = {**lists, "streams": [1], short: []}
        with pytest.raises(RuntimeError, match=rf"{short} must have one entry per parameter \(1\), got 0"):
            op(f"foreach_{name}_")(**call, **given)
