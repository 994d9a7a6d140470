"""ZOSGD against replicas made of the reference noise, to the bit, and its life as a torch optimizer."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from helpers import DISTRIBUTIONS, DTYPES, assert_same_bits, name_of

from mobizo_kernels import reference
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.zo import ZOSGD, optimizers

SHAPES = {"a.weight": (5, 7), "a.bias": (5,), "b.weight": (3, 1, 43)}


def parameters(rng: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape, generator=rng).to(dtype) for name, shape in SHAPES.items()}


def gradient(rng: torch.Generator, queries: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    seeds = torch.randint(-(2**63), 2**63 - 1, (queries,), generator=rng)
    return seeds, torch.randn(queries, generator=rng)


def clone(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in values.items()}


def perturbed(
    values: dict[str, torch.Tensor], seeds: torch.Tensor, coeffs: torch.Tensor, *options: Any
) -> dict[str, torch.Tensor]:
    return {
        name: reference.perturb(value, seeds, coeffs.float(), parameter_stream(name), *options)
        for name, value in values.items()
    }


def assert_all_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name in SHAPES:
        assert_same_bits(actual[name], expected[name])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_step(dtype: torch.dtype, distribution: str, rng: torch.Generator) -> None:
    params, (seeds, grads) = parameters(rng, dtype), gradient(rng)
    before = clone(params)
    ZOSGD(params.items(), lr=0.03, weight_decay=0.1, distribution=distribution).step(seeds, grads)
    coeffs = -0.03 * (grads.double() / 3)
    assert_all_same_bits(params, perturbed(before, seeds, coeffs, 1 - 0.03 * 0.1, distribution))


def test_step_is_one_pass(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(params: list[torch.Tensor], *args: Any) -> None:
        calls.append(len(params))

    monkeypatch.setattr(optimizers, "foreach_perturb_", counted)
    seeds, grads = gradient(rng)
    ZOSGD(parameters(rng).items()).step(seeds, grads, standing=torch.tensor([0.0, 0.0, 0.5]))
    assert calls == [len(SHAPES)]


def test_standing_perturbation_is_taken_off_in_the_same_pass(rng: torch.Generator) -> None:
    params, (seeds, grads) = parameters(rng), gradient(rng)
    before, standing = clone(params), torch.tensor([0.0, -0.25, 0.0])
    optimizer = ZOSGD(params.items(), lr=0.03, weight_decay=0.5)
    optimizer.perturb(seeds, standing)
    trial = perturbed(before, seeds, standing)
    assert_all_same_bits(params, trial)
    optimizer.step(seeds, grads, standing)
    decay = 1 - 0.03 * 0.5
    coeffs = -decay * standing.double() - 0.03 * (grads.double() / 3)
    assert_all_same_bits(params, perturbed(trial, seeds, coeffs, decay))


@pytest.mark.parametrize("standing", [None, torch.tensor([0.0, 0.0, 0.125])], ids=["clean", "standing"])
def test_momentum(standing: torch.Tensor | None, rng: torch.Generator) -> None:
    params = parameters(rng)
    expected, buffers = clone(params), {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    optimizer = ZOSGD(params.items(), lr=0.03, momentum=0.9, weight_decay=0.2)
    for _ in range(3):
        seeds, grads = gradient(rng)
        optimizer.step(seeds, grads, standing)
        if standing is not None:
            expected = perturbed(expected, seeds, -standing)
        buffers = perturbed(buffers, seeds, grads.double() / 3, 0.9)
        for name in SHAPES:
            expected[name] = torch.add(expected[name] * (1 - 0.03 * 0.2), buffers[name], alpha=-0.03)
    assert_all_same_bits(params, expected)


def test_no_state_without_momentum(rng: torch.Generator) -> None:
    optimizer = ZOSGD(parameters(rng).items())
    optimizer.step(*gradient(rng))
    assert not optimizer.state


def test_parameter_groups_and_scheduler(rng: torch.Generator) -> None:
    params, (seeds, grads) = parameters(rng), gradient(rng)
    expected = clone(params)
    slow = [("a.weight", params["a.weight"]), ("a.bias", params["a.bias"])]
    optimizer = ZOSGD(
        [{"params": slow, "lr": 0.1}, {"params": [("b.weight", params["b.weight"])], "weight_decay": 0.5}],
        lr=1.0,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        optimizer.step(seeds, grads)
        scheduler.step()
        for name in SHAPES:
            lr = (1.0 if name == "b.weight" else 0.1) * 0.5**step
            decay = 1 - lr * 0.5 if name == "b.weight" else 1.0
            coeffs = (-lr * (grads.double() / 3)).float()
            stream = parameter_stream(name)
            expected[name] = reference.perturb(expected[name], seeds, coeffs, stream, decay)
    assert_all_same_bits(params, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_state_dict_round_trip(dtype: torch.dtype, rng: torch.Generator) -> None:
    params = parameters(rng, dtype)
    optimizer = ZOSGD(params.items(), lr=0.03, momentum=0.9, distribution="rademacher")
    optimizer.step(*gradient(rng))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed_params = clone(params)
    resumed = ZOSGD(resumed_params.items(), lr=1.0, momentum=0.5)
    resumed.load_state_dict(torch.load(file))
    for _ in range(2):
        seeds, grads = gradient(rng)
        optimizer.step(seeds, grads)
        resumed.step(seeds, grads)
    assert_all_same_bits(resumed_params, params)


def test_copies_keep_everything(rng: torch.Generator) -> None:
    optimizer = ZOSGD(parameters(rng).items(), lr=0.5, distribution="rademacher")
    twin = copy.deepcopy(optimizer)
    seeds, grads = gradient(rng)
    optimizer.step(seeds, grads)
    twin.step(seeds, grads)
    for ours, theirs in zip(optimizer.param_groups[0]["params"], twin.param_groups[0]["params"], strict=True):
        assert_same_bits(theirs, ours)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"lr": float("nan")}, "lr must be at least 0, got nan"),
        ({"weight_decay": -0.5}, "weight_decay must be at least 0, got -0.5"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"distribution": "cauchy"}, "distribution must be gaussian or rademacher, got 'cauchy'"),
    ],
)
def test_errors(options: dict[str, Any], message: str, rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match=message):
        ZOSGD(parameters(rng).items(), **options)


def test_nameless_parameters_are_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="parameters must come with their names"):
        ZOSGD(parameters(rng).values())  # type: ignore[arg-type]
