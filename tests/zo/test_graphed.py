"""Steps over static tensors, as a CUDA graph makes them, against the ordinary step, to the bit.

Without a GPU the operations that a graph would hold run uncaptured; what only a GPU can show is skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import transformers.utils.import_utils
from helpers import DISTRIBUTIONS, assert_same_bits
from peft import LoraConfig
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from mobizo_kernels import reference
from mobizo_kernels.lora import adapter_layers, wrap
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.optim import query_seeds
from mobizo_kernels.zo import ZerothOrder, graphed, tuned_parameters
from mobizo_kernels.zo.graphed import GraphedSteps

Batch = dict[str, torch.Tensor]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def wrapped(rng: torch.Generator, device: str = "cpu") -> PreTrainedModel:
    model = wrap(tiny.llama(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "lm_head"]))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng).mul_(0.1)
    return model.to(device)


def static(model: nn.Module, **options: Any) -> ZerothOrder:
    """A run whose steps are those of a graph, uncaptured where there is no GPU."""
    zo = ZerothOrder(model, **options)
    distribution = options.get("distribution", "gaussian")
    zo._graphed = GraphedSteps(zo.loss, zo.estimator, zo.optimizer, distribution)
    return zo


def batches(rng: torch.Generator) -> list[Batch]:
    """Batches of three shapes, each three times: plain, with padding on the left, with more labels."""
    shapes: list[Callable[[], Batch]] = [
        lambda: tiny.batch(rng, lengths=(8, 8, 8)),
        lambda: tiny.batch(rng),
        lambda: tiny.batch(rng, labelled=3),
    ]
    return [make() for _ in range(3) for make in shapes]


def assert_same_adapters(model: nn.Module, expected: nn.Module) -> None:
    for (_, got), (_, wanted) in zip(tuned_parameters(model), tuned_parameters(expected), strict=True):
        assert_same_bits(got, wanted)


RULES: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "adam": {"optimizer": "adam", "betas": (0.5, 0.9)},
    "sign": {"optimizer": "sign"},
}


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"estimator": estimator, "normalize": normalize, "distribution": distribution}
            for estimator in ("two_sided", "one_sided", "centred")
            for normalize in (False, True)
            for distribution in DISTRIBUTIONS
        ),
        *RULES.values(),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_step_is_the_ordinary_one(options: dict[str, Any], rng: torch.Generator) -> None:
    model = wrapped(rng)
    twin = copy.deepcopy(model)
    options = {"queries": 3, "eps": 0.05, "lr": 0.02, "run_seed": 5, **options}
    ordinary, other = ZerothOrder(model, **options), static(twin, **options)
    schedules = [
        torch.optim.lr_scheduler.LinearLR(zo.optimizer, 1.0, 0.1, total_iters=9) for zo in (ordinary, other)
    ]
    for batch in batches(rng):
        expected, got = ordinary.step(batch), other.step(batch)
        assert_same_bits(got.losses, expected.losses)
        assert_same_bits(got.projected_grads, expected.projected_grads)
        assert (got.step, got.loss, got.skipped) == (expected.step, expected.loss, False)
        assert_same_adapters(twin, model)
        for schedule in schedules:
            schedule.step()
    assert len(other._graphed._steps) == 3


def test_candidates(rng: torch.Generator) -> None:
    model = wrapped(rng)
    twin, ordinary = copy.deepcopy(model), ZerothOrder(model, candidate_tokens=[7, 9, 11])
    other = static(twin, candidate_tokens=[7, 9, 11])
    for labels in ([7, 9, 7], [11, 9, 9], [9, 9, 11]):
        batch = tiny.batch(rng, labelled=1)
        batch["labels"][:, -1] = torch.tensor(labels)
        assert_same_bits(other.step(batch).losses, ordinary.step(batch).losses)
    assert_same_adapters(twin, model)


def test_a_batch_is_only_read(rng: torch.Generator) -> None:
    zo, given = static(wrapped(rng)), [tiny.batch(rng) for _ in range(3)]
    before = copy.deepcopy(given)
    for batch in given:
        zo.step(batch)
    for batch, expected in zip(given, before, strict=True):
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize("rule", [{}, *RULES.values()], ids=["plain", *RULES])
@pytest.mark.parametrize("at", [0, 1])
def test_a_loss_that_is_not_finite_skips_the_update(
    at: int, rule: dict[str, Any], rng: torch.Generator
) -> None:
    model, batch = wrapped(rng), tiny.batch(rng)
    zo, twin = static(model, queries=2, **rule), copy.deepcopy(model)
    ordinary = ZerothOrder(twin, queries=2, **rule)
    for step in range(4):
        handles = [
            part.model.norm.register_forward_hook(lambda *args: args[2] * float("inf"))
            for part in (model, twin)
            if step == at
        ]
        out, expected = zo.step(batch), ordinary.step(batch)
        for handle in handles:
            handle.remove()
        assert out.skipped == expected.skipped == (step == at)
        assert_same_bits(out.projected_grads, expected.projected_grads)
        assert_same_adapters(model, twin)
    assert zo.skipped_steps == 1 and zo.steps == 4


def test_other_numbers_get_a_graph_of_their_own(rng: torch.Generator) -> None:
    zo, batch = static(wrapped(rng), momentum=0.5), tiny.batch(rng)
    for momentum in (0.5, 0.5, 0.9):
        zo.optimizer.param_groups[0]["momentum"] = momentum
        zo.step(batch)
    assert len(zo._graphed._steps) == 2


def test_the_oldest_graphs_go(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphed, "MOST_GRAPHS", 2)
    model = wrapped(rng)
    twin, ordinary = copy.deepcopy(model), ZerothOrder(model)
    other = static(twin)
    for batch in batches(rng):
        other.step(batch)
        ordinary.step(batch)
        assert len(other._graphed._steps) <= 2
    assert_same_adapters(twin, model)


def test_moved_parameters_get_a_graph_of_their_own(rng: torch.Generator) -> None:
    model, batch = wrapped(rng), tiny.batch(rng)
    zo = static(model)
    zo.step(batch)
    for layer in adapter_layers(model).values():
        layer.lora_b.data = layer.lora_b.data.clone()
    zo.step(batch)
    assert len(zo._graphed._steps) == 2


class NothingReadBack(TorchDispatchMode):
    """Fails on what a capture refuses: values that come to the host, and numbers that come from it."""

    REFUSED = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "lift_fresh", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in self.REFUSED, f"{func} inside a step"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options", [{"normalize": True}, {"candidate_tokens": [7, 9]}, *RULES.values()], ids=str
)
@pytest.mark.parametrize("lengths", [(8, 8, 8), (7, 5, 9)], ids=["whole", "padded"])
def test_nothing_is_read_back_during_a_step(
    lengths: tuple[int, ...], options: dict[str, Any], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = tiny.batch(rng, lengths=lengths, labelled=1)
    batch["labels"][:, -1] = 7
    zo = static(wrapped(rng), queries=2, **options)
    zo.step(batch)
    (step,) = zo._graphed._steps.values()
    monkeypatch.setattr(transformers.utils.import_utils, "is_cuda_stream_capturing", lambda: True)
    masks: list[torch.Tensor | None] = []
    zo.model.model.layers[0].register_forward_pre_hook(
        lambda layer, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with NothingReadBack():
        zo._graphed._run(step)
    # There is no mask, as in the ordinary step: the attention is the same kernel.
    assert masks == [None]


def test_bad_batches_are_no_step(rng: torch.Generator) -> None:
    model, batch = wrapped(rng), tiny.batch(rng)
    zo, before = static(model), copy.deepcopy(model)
    with pytest.raises(ValueError, match="batch has no label"):
        zo.step({**batch, "labels": torch.full_like(batch["labels"], -100)})
    assert zo.steps == 0
    assert_same_adapters(model, before)


def test_options_that_no_graph_can_hold(rng: torch.Generator, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="cuda_graph=True needs a model wrapped by mobizo_kernels.wrap"):
        ZerothOrder(tiny.llama(), cuda_graph=True)
    with pytest.raises(ValueError, match="cuda_graph=True needs weight_decay=0, got 0.5"):
        ZerothOrder(wrapped(rng), cuda_graph=True, weight_decay=0.5)
    with pytest.raises(ValueError, match="needs the whole model on one CUDA device, got one on cpu"):
        ZerothOrder(wrapped(rng), cuda_graph=True)
    model = wrapped(rng)
    zo, before = static(model), copy.deepcopy(model)
    with pytest.raises(ValueError, match="journal needs cuda_graph=False, got True"):
        zo.open_journal(tmp_path / "run.journal")
    assert not list(tmp_path.iterdir())
    zo.optimizer.param_groups[0]["weight_decay"] = 0.9
    with pytest.raises(ValueError, match="cuda_graph=True needs weight_decay=0, got 0.9"):
        zo.step(tiny.batch(rng))
    assert_same_adapters(model, before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device captures this model")
def test_a_model_that_cannot_be_captured(rng: torch.Generator) -> None:
    model, batch = wrapped(rng), tiny.batch(rng)
    zo = static(model)
    zo.step(batch)
    before, zo._graphed._device = copy.deepcopy(model), torch.device("cuda")
    message = "cuda_graph=True: a step of LlamaForCausalLM cannot be captured in a CUDA graph"
    with pytest.raises(RuntimeError, match=message):
        zo.step(batch)
    assert zo.steps == 1
    assert_same_adapters(model, before)


@needs_gpu
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_captured_steps(normalize: bool, rng: torch.Generator) -> None:
    model = wrapped(rng, "cuda")
    twin = copy.deepcopy(model)
    options: dict[str, Any] = {"queries": 3, "lr": 0.02, "normalize": normalize}
    ordinary, captured = ZerothOrder(model, **options), ZerothOrder(twin, cuda_graph=True, **options)
    for batch in batches(rng):
        before = {name: parameter.detach().cpu() for name, parameter in tuned_parameters(twin)}
        expected, got = ordinary.step(batch), captured.step(batch)
        torch.testing.assert_close(got.losses, expected.losses, rtol=1e-4, atol=0)
        assert_same_bits(got.projected_grads, captured.estimator.projected_gradients(got.losses))
        coeffs, seeds = captured.optimizer.record(got.projected_grads).coeffs, query_seeds(0, got.step, 3)
        for name, parameter in tuned_parameters(twin):
            wanted = reference.perturb(before[name], seeds, coeffs, parameter_stream(name))
            assert_same_bits(parameter.detach().cpu(), wanted)
    assert all(step.replay is not None for step in captured._graphed._steps.values())


@needs_gpu
def test_a_captured_step_skips_too(rng: torch.Generator) -> None:
    model, batch = wrapped(rng, "cuda"), tiny.batch(rng)
    zo = ZerothOrder(model, cuda_graph=True)
    for _ in range(2):
        zo.step(batch)
    before = copy.deepcopy(model)
    model.model.norm.weight.data.fill_(float("inf"))
    assert zo.step(batch).skipped
    assert_same_adapters(model, before)
