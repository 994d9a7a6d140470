"""The step against float64 models and reference noise: passes, forwards, failures, resuming, learning."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from helpers import DISTRIBUTIONS, assert_same_bits
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels import reference
from mobizo_kernels.lora import adapter_layers, adapter_of, unwrap, wrap
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.optim import base, query_seeds
from mobizo_kernels.zo import ZerothOrder, tuned_parameters
from mobizo_kernels.zo.zeroth_order import StepOutput

ESTIMATORS = ("two_sided", "one_sided", "centred")
Parameters = dict[str, torch.Tensor]


def wrapped(rng: torch.Generator, target_modules: Any = ("q_proj", "v_proj", "down_proj")) -> PreTrainedModel:
    model = tiny.llama()
    wrap(model, LoraConfig(r=3, lora_alpha=6, target_modules=list(target_modules)))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng).mul_(0.1)
    return model


def snapshot(model: nn.Module) -> Parameters:
    return {name: parameter.detach().clone() for name, parameter in tuned_parameters(model)}


def assert_unchanged(model: nn.Module, before: Parameters) -> None:
    for name, value in snapshot(model).items():
        assert_same_bits(value, before[name])


def plan(estimator: str, queries: int, eps: float) -> list[tuple[int, float]]:
    """Query and signed size of each group, written out from the definition."""
    plus, minus = [(k, eps) for k in range(queries)], [(k, -eps) for k in range(queries)]
    return {"two_sided": plus + minus, "one_sided": [(0, 0.0), *plus], "centred": plus}[estimator]


def perturbed(
    values: Parameters,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> Parameters:
    return {
        name: reference.perturb(value, seeds, coeffs.float(), parameter_stream(name), decay, distribution)
        for name, value in values.items()
    }


def exact_loss(model: PreTrainedModel, values: Parameters, batch: dict[str, torch.Tensor]) -> float:
    """The loss in float64 of a plain model, adapters merged, whose tuned parameters are `values`."""
    model = copy.deepcopy(model).double()
    for name, parameter in tuned_parameters(model):
        parameter.data = values[name].double()
    for layer in adapter_layers(model).values():
        layer.weight.data += layer.scaling * layer.lora_b.double() @ layer.lora_a.double()
    if adapter_layers(model):
        unwrap(model)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=positions,
            use_cache=False,
        ).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()).item()


def check_losses(
    model: PreTrainedModel,
    before: Parameters,
    batch: dict[str, torch.Tensor],
    out: StepOutput,
    **options: Any,
) -> None:
    """The losses and projected gradients of a step from `before`, by float64 models and the formulas."""
    seeds = query_seeds(options["run_seed"], out.step, options["queries"])
    groups = plan(options["estimator"], options["queries"], options["eps"])
    expected = []
    for query, coeff in groups:
        one = slice(query, query + 1)
        values = perturbed(before, seeds[one], torch.tensor([coeff]), 1.0, options["distribution"])
        expected.append(exact_loss(model, values, batch))
    assert out.losses.tolist() == pytest.approx(expected, rel=2e-5)
    q, eps = options["queries"], options["eps"]
    if options["estimator"] == "two_sided":
        grads = [(expected[k] - expected[q + k]) / (2 * eps) for k in range(q)]
        assert out.loss == pytest.approx(sum(expected) / len(expected), rel=2e-5)
    elif options["estimator"] == "centred":
        grads = [(expected[k] - sum(expected[:k] + expected[k + 1 :]) / (q - 1)) / eps for k in range(q)]
        assert out.loss == pytest.approx(sum(expected) / len(expected), rel=2e-5)
    else:
        grads = [(expected[k + 1] - expected[0]) / eps for k in range(q)]
        assert out.loss == pytest.approx(expected[0], rel=2e-5)
    assert out.projected_grads.tolist() == pytest.approx(grads, abs=4e-5 * max(expected) / eps)
    assert max(map(abs, grads)) > 1e-3 * max(expected) / eps  # far above that tolerance


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_wrapped_step(estimator: str, distribution: str, rng: torch.Generator) -> None:
    model, batch = wrapped(rng), tiny.batch(rng)
    options: dict[str, Any] = {"queries": 3, "eps": 0.05, "run_seed": 2**63 + 5}
    options |= {"estimator": estimator, "distribution": distribution}
    zo = ZerothOrder(model, lr=0.02, weight_decay=0.5, **options)
    for step in range(2):
        before = snapshot(model)
        out = zo.step(batch)
        assert (out.step, out.skipped) == (step, False)
        check_losses(model, before, batch, out, **options)
        seeds = query_seeds(options["run_seed"], step, 3)
        coeffs = -0.02 * (out.projected_grads.double() / 3)
        expected = perturbed(before, seeds, coeffs, 1 - 0.02 * 0.5, distribution)
        assert_unchanged(model, expected)
    directions = adapter_of(model).directions
    assert directions.seeds.tolist() == [0] and directions.coeffs.tolist() == [0.0]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_full_parameter_step(estimator: str, distribution: str, rng: torch.Generator) -> None:
    model, batch = tiny.llama(tie_word_embeddings=True), tiny.batch(rng)
    model.model.layers[0].requires_grad_(False)
    frozen = copy.deepcopy(model.model.layers[0].state_dict())
    options: dict[str, Any] = {"queries": 2, "eps": 1e-2, "run_seed": -3}
    options |= {"estimator": estimator, "distribution": distribution}
    before = snapshot(model)
    assert "lm_head.weight" not in before and "model.embed_tokens.weight" in before
    zo = ZerothOrder(model, lr=1e-3, weight_decay=0.5, **options)
    out = zo.step(batch)
    check_losses(model, before, batch, out, **options)

    # The passes over the parameters, one by one; the last takes off what stands and updates.
    seeds, values = query_seeds(-3, 0, 2), before
    groups = plan(estimator, 2, 1e-2)
    order = {"two_sided": [0, 2, 1, 3], "one_sided": [0, 1, 2], "centred": [0, 1]}[estimator]
    standing = torch.zeros(2)
    for query, coeff in (groups[group] for group in order):
        wanted = torch.zeros(2)
        wanted[query] = coeff
        change = wanted - standing
        values = perturbed(values, seeds[change != 0], change[change != 0], 1.0, distribution)
        standing = wanted
    decay = 1 - 1e-3 * 0.5
    coeffs = -decay * standing.double() - 1e-3 * (out.projected_grads.double() / 2)
    assert_unchanged(model, perturbed(values, seeds, coeffs, decay, distribution))
    for name, value in model.model.layers[0].state_dict().items():
        assert_same_bits(value, frozen[name])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("full", [False, True], ids=["wrapped", "full"])
def test_passes_and_forwards(
    full: bool, estimator: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = tiny.llama() if full else wrapped(rng), tiny.batch(rng)
    zo = ZerothOrder(model, queries=4, estimator=estimator)
    passes, forwards = [], []

    def counted(params: list[torch.Tensor], seeds: torch.Tensor, *args: Any) -> None:
        passes.append(len(seeds))

    monkeypatch.setattr(base, "foreach_perturb_", counted)
    model.model.register_forward_hook(lambda *args: forwards.append(args[2].last_hidden_state.shape[0]))
    zo.step(batch)
    groups = zo.estimator.groups
    if full:
        assert forwards == [3] * groups
        assert len(passes) == (2 * 4 + 1 if estimator == "two_sided" else 4 + 1)
        assert max(passes[:-1]) <= 2 and passes[-1] == 4
    else:
        assert forwards == [3 * groups]
        assert passes == [4]


@pytest.mark.parametrize("fail_at", range(4))
@pytest.mark.parametrize("full", [False, True], ids=["wrapped", "full"])
def test_an_error_in_the_forward_leaves_no_trace(full: bool, fail_at: int, rng: torch.Generator) -> None:
    model, batch = tiny.llama() if full else wrapped(rng), tiny.batch(rng)
    zo, twin_model = ZerothOrder(model, queries=2), copy.deepcopy(model)
    before, calls = snapshot(model), itertools.count()

    def fail(*args: Any) -> None:
        if next(calls) == (fail_at if full else 0):
            raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        zo.step(batch)
    handle.remove()
    for name, value in snapshot(model).items():
        if full:
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
        else:
            assert_same_bits(value, before[name])
    again = zo.step(batch)
    assert again.step == 0
    expected = ZerothOrder(twin_model, queries=2).step(batch)
    torch.testing.assert_close(again.losses, expected.losses, rtol=1e-4, atol=0)


@pytest.mark.parametrize("full", [False, True], ids=["wrapped", "full"])
def test_a_loss_that_is_not_finite_skips_the_update(full: bool, rng: torch.Generator) -> None:
    model, batch = tiny.llama() if full else wrapped(rng), tiny.batch(rng)
    zo, before = ZerothOrder(model, queries=2, momentum=0.9), snapshot(model)
    calls, poison = itertools.count(), 3 if full else 0

    def spoil(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * float("inf") if next(calls) == poison else output

    handle = model.model.norm.register_forward_hook(spoil)
    out = zo.step(batch)
    handle.remove()
    assert out.skipped and zo.skipped_steps == 1 and not zo.optimizer.state
    assert out.projected_grads.isnan().all()
    for name, value in snapshot(model).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6 if full else 0)
    out = zo.step(batch)
    assert (out.step, out.skipped, zo.skipped_steps) == (1, False, 1)
    twin_model = tiny.llama() if full else copy.deepcopy(model)
    for name, parameter in tuned_parameters(twin_model):
        parameter.data = before[name]
    twin = ZerothOrder(twin_model, queries=2)
    twin.steps = 1
    torch.testing.assert_close(out.losses, twin.step(batch).losses, rtol=1e-4, atol=0)


def test_a_slope_beyond_float32_skips_the_update(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = wrapped(rng), tiny.batch(rng)
    zo, before = ZerothOrder(model, queries=2, optimizer="adam"), snapshot(model)
    monkeypatch.setattr(zo._trials, "losses", lambda *args: (torch.tensor([3e38, 1.0, 0.0, 1.0]), None))
    assert zo.step(batch).skipped
    assert_unchanged(model, before)


@pytest.mark.parametrize("full", [False, True], ids=["wrapped", "full"])
@pytest.mark.parametrize("option", [{"lr": -1.0}, {"momentum": 1.5}], ids=["lr", "momentum"])
def test_an_option_that_is_out_of_range_leaves_no_trace(
    option: dict[str, float], full: bool, rng: torch.Generator
) -> None:
    model = tiny.llama() if full else wrapped(rng)
    zo, before = ZerothOrder(model, queries=2), snapshot(model)
    zo.optimizer.param_groups[0].update(option)
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be "):
        zo.step(tiny.batch(rng))
    assert zo.steps == 0
    assert_unchanged(model, before)


def test_a_coefficient_beyond_float32_skips_the_update(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = wrapped(rng), tiny.batch(rng)
    zo, before = ZerothOrder(model, queries=2, lr=1e38), snapshot(model)
    monkeypatch.setattr(zo._trials, "losses", lambda *args: (torch.tensor([3.0, 1.0, 0.0, 1.0]), None))
    out = zo.step(batch)
    assert out.skipped and out.projected_grads.isnan().all() and zo.skipped_steps == 1
    assert_unchanged(model, before)


def train(model: nn.Module, batch: dict[str, torch.Tensor], steps: int, **options: Any) -> list[float]:
    zo = ZerothOrder(model, **options)
    return [zo.step(batch).loss for _ in range(steps)]


@pytest.mark.parametrize("options", [
    {"lr": 0.1},
    {"lr": 0.03, "normalize": True, "distribution": "rademacher"},
    {"lr": 0.01, "momentum": 0.9},
    {"lr": 0.1, "estimator": "one_sided", "queries": 7},
    {"lr": 0.1, "estimator": "centred", "queries": 8},
    {"lr": 0.03, "estimator": "centred", "queries": 8, "normalize": True, "distribution": "outer"},
    {"lr": 0.02, "optimizer": "adam", "weight_decay": 0.01},
    {"lr": 0.02, "optimizer": "adam", "normalize": True, "estimator": "one_sided", "queries": 7},
    {"lr": 0.01, "optimizer": "sign", "distribution": "rademacher"},
], ids=[
    "plain", "fzoo", "momentum", "one_sided", "centred", "centred fzoo", "adam", "adam fzoo one_sided",
    "sign",
])  # fmt: skip
def test_the_loss_falls_with_adapters(options: dict[str, Any], rng: torch.Generator) -> None:
    losses = train(wrapped(rng), tiny.batch(rng), 100, **options)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("options", [
    {"lr": 1e-3},
    {"lr": 3e-4, "momentum": 0.7},
    {"lr": 3e-3, "optimizer": "adam", "estimator": "one_sided"},
    {"lr": 4e-3, "optimizer": "sign"},
], ids=["plain", "momentum", "adam", "sign"])  # fmt: skip
def test_the_loss_falls_with_all_parameters(options: dict[str, Any], rng: torch.Generator) -> None:
    losses = train(tiny.llama(), tiny.batch(rng), 100, eps=1e-3, **options)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_candidate_tokens_and_scheduler(rng: torch.Generator) -> None:
    model, batch = wrapped(rng), tiny.batch(rng, labelled=1)
    batch["labels"][:, -1] = torch.tensor([7, 9, 7])
    zo = ZerothOrder(model, lr=0.5, candidate_tokens=[7, 9])
    scheduler = torch.optim.lr_scheduler.LinearLR(zo.optimizer, 1.0, 0.0, total_iters=2)
    for lr in (0.5, 0.25):
        before = snapshot(model)
        out = zo.step(batch)
        scheduler.step()
        seeds = query_seeds(0, out.step, 4)
        assert_unchanged(model, perturbed(before, seeds, -lr * (out.projected_grads.double() / 4)))
    before = snapshot(model)
    zo.step(batch)  # the learning rate has reached zero
    assert_unchanged(model, before)


@pytest.mark.compiler
@pytest.mark.parametrize("full", [False, True], ids=["wrapped", "full"])
def test_a_compiled_decoder_keeps_its_noise(full: bool, rng: torch.Generator) -> None:
    model, batch = tiny.llama() if full else wrapped(rng), tiny.batch(rng)
    compiled = copy.deepcopy(model)
    compiled.model = torch.compile(compiled.model, backend="eager")
    expected = ZerothOrder(model, queries=2, eps=1e-3).step(batch)
    got = ZerothOrder(compiled, queries=2, eps=1e-3).step(batch)
    torch.testing.assert_close(got.losses, expected.losses, rtol=1e-5, atol=0)
    for (name, parameter), (twin_name, twin) in zip(
        tuned_parameters(model), tuned_parameters(compiled), strict=True
    ):
        assert name == twin_name
        torch.testing.assert_close(twin, parameter, rtol=0, atol=1e-4)


def test_adapters_and_weights_have_the_same_names(rng: torch.Generator) -> None:
    names = {name for name, _ in tuned_parameters(wrapped(rng))}
    assert names < {name for name, _ in tiny.llama().named_parameters()}
    assert len(names) == 6


def test_a_bad_batch_is_no_step(rng: torch.Generator) -> None:
    model, batch = wrapped(rng), tiny.batch(rng)
    zo, before = ZerothOrder(model), snapshot(model)
    with pytest.raises(ValueError, match="batch has no label"):
        zo.step({**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert zo.steps == 0
    assert_unchanged(model, before)
