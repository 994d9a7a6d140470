"""The optimizers against replicas made of the reference noise and torch's own optimizers, and their life as
torch optimizers.
"""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import DISTRIBUTIONS, DTYPES, assert_same_bits, name_of
from journals import BAD_RULES

from mobizo_kernels import reference
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.optim import (
    ZOSGD,
    StepRecord,
    UpdateRule,
    ZOAdam,
    ZOOptimizer,
    ZOSign,
    base,
    make_optimizer,
)

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

    monkeypatch.setattr(base, "foreach_perturb_", counted)
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


def estimate(seeds: torch.Tensor, grads: torch.Tensor) -> dict[str, torch.Tensor]:
    """(1 / q) sum_k g_k z_k of every parameter, float64."""
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for seed, slope in zip(seeds.tolist(), grads.tolist(), strict=True):
        for name, shape in SHAPES.items():
            noise = torch.from_numpy(reference.noise(shape, seed, parameter_stream(name)))
            sums[name] += slope / len(grads) * noise.double()
    return sums


PEERS: dict[str, tuple[Any, Any]] = {
    "sgd": (ZOSGD, lambda p: torch.optim.SGD(p, lr=0.03)),
    "momentum": (
        lambda p: ZOSGD(p, lr=0.03, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
    ),
    "adam": (
        lambda p: ZOAdam(p, lr=0.03, betas=(0.8, 0.9), eps=1e-12, weight_decay=0.5),
        lambda p: torch.optim.AdamW(p, lr=0.03, betas=(0.8, 0.9), eps=1e-12, weight_decay=0.5),
    ),
}


@pytest.mark.parametrize("standing", [None, torch.tensor([0.0, 0.0, 0.125])], ids=["clean", "standing"])
@pytest.mark.parametrize("name", PEERS)
def test_steps_are_those_of_torch(name: str, standing: torch.Tensor | None, rng: torch.Generator) -> None:
    """In float64, over the estimate as a gradient tensor."""
    params, (ours, theirs) = parameters(rng), PEERS[name]
    peers = {key: value.double().requires_grad_() for key, value in clone(params).items()}
    optimizer, peer = ours(params.items()), theirs(peers.values())
    optimizer.param_groups[0]["lr"] = 0.03
    for _ in range(4):
        seeds, grads = gradient(rng)
        if standing is not None:
            optimizer.perturb(seeds, standing)
        optimizer.step(seeds, grads, standing)
        for key, value in estimate(seeds, grads).items():
            peers[key].grad = value
        peer.step()
    for key, value in params.items():
        torch.testing.assert_close(value.double(), peers[key].detach(), rtol=2e-5, atol=2e-6)


def test_sign(rng: torch.Generator) -> None:
    params = parameters(rng)
    expected, optimizer = clone(params), ZOSign(params.items(), lr=0.03, weight_decay=0.2)
    for _ in range(3):
        seeds, grads = gradient(rng)
        optimizer.step(seeds, grads)
        for name, value in estimate(seeds, grads).items():
            expected[name] = expected[name].double() * (1 - 0.03 * 0.2) - 0.03 * value.sign()
    for name, value in params.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)
    assert not optimizer.state


def test_a_velocity_is_of_steps(rng: torch.Generator) -> None:
    """When the learning rate falls to zero, the steps of before go on; torch.optim.SGD would stop."""
    params, (seeds, grads) = parameters(rng), gradient(rng)
    start, optimizer = clone(params), ZOSGD(params.items(), lr=0.03, momentum=0.5)
    optimizer.step(seeds, grads)
    first = {name: params[name] - start[name] for name in SHAPES}
    optimizer.param_groups[0]["lr"] = 0.0
    before = clone(params)
    optimizer.step(seeds, grads)
    for name in SHAPES:
        torch.testing.assert_close(params[name] - before[name], 0.5 * first[name], rtol=1e-4, atol=1e-6)


RULES = [
    UpdateRule(),
    UpdateRule(momentum=0.9, weight_decay=0.5),
    UpdateRule("adam", betas=(0.7, 0.8)),
    UpdateRule("sign", weight_decay=1.0),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_recorded_step_has_the_bits_of_the_step(
    dtype: torch.dtype, rule: UpdateRule, rng: torch.Generator
) -> None:
    params = parameters(rng, dtype)
    again = clone(params)
    optimizer = make_optimizer(params.items(), replace(rule, lr=0.1))
    twin = make_optimizer(again.items(), replace(rule, lr=7.0))
    for step in range(4):
        seeds, grads = gradient(rng)
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        record = optimizer.record(grads)
        optimizer.step(seeds, grads)
        twin.apply(seeds, StepRecord.skipped(3, 0.5))
        twin.apply(seeds, record)
        assert_all_same_bits(again, params)
    for state in optimizer.state.values():
        assert all(value.dtype == torch.float32 for name, value in state.items() if name != "step")


def test_rules_and_their_json() -> None:
    for rule in RULES:
        assert UpdateRule.from_json(rule.as_json()) == rule
    assert [rule.plain for rule in RULES] == [True, False, False, False]
    adam = UpdateRule("adam", betas=(0.5, 0.75))
    assert adam.rate(0.1, 0) == pytest.approx(0.1 * 0.25**0.5 / 0.5)
    assert adam.rate(0.1, 2) == pytest.approx(0.1 * (1 - 0.75**3) ** 0.5 / (1 - 0.5**3))
    bad: list[tuple[Any, str]] = [*BAD_RULES, (None, "expected an object, got null")]
    for values, sentence in bad:
        with pytest.raises(ValueError) as refused:
            UpdateRule.from_json(values)
        assert str(refused.value) == sentence


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


@pytest.mark.parametrize("kind", [ZOSGD, ZOAdam], ids=["momentum", "adam"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_state_dict_round_trip(dtype: torch.dtype, kind: type[ZOOptimizer], rng: torch.Generator) -> None:
    params = parameters(rng, dtype)
    options: dict[str, Any] = {"momentum": 0.9} if kind is ZOSGD else {"betas": (0.5, 0.6)}
    optimizer = kind(params.items(), lr=0.03, distribution="rademacher", **options)
    optimizer.step(*gradient(rng))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed_params = clone(params)
    resumed = kind(resumed_params.items(), lr=1.0)
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
        ({"lr": -1.0}, "lr must be at least 0 and finite in float32, got -1.0"),
        ({"lr": float("nan")}, "lr must be at least 0 and finite in float32, got nan"),
        ({"weight_decay": -0.5}, "weight_decay must be finite and at least 0, got -0.5"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"distribution": "cauchy"}, "distribution must be one of gaussian, rademacher, outer, got 'cauchy'"),
    ],
)
def test_errors(options: dict[str, Any], message: str, rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match=message):
        ZOSGD(parameters(rng).items(), **options)


def test_nameless_parameters_are_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="parameters must come with their names"):
        ZOSGD(parameters(rng).values())  # type: ignore[arg-type]
