"""Steps with compiled layers: what they compute, how many graphs they take, and what cannot be compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from mobizo_kernels.journal import replay
from mobizo_kernels.lora import wrap
from mobizo_kernels.loss import LabelledLoss, compiled, float32_products
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.models import quantize_base
from mobizo_kernels.zo import ZerothOrder, tuned_parameters

pytestmark = pytest.mark.compiler

INVOCATION = [5, 6]
FOUR_LAYERS = {"num_hidden_layers": 4, "num_key_value_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "whole": {},
    "upper layers": {"layers_to_transform": [2, 3]},
    "tail": {"alora_invocation_tokens": INVOCATION},
    "tail, upper layers": {"alora_invocation_tokens": INVOCATION, "layers_to_transform": [2, 3]},
}


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of nodes of each graph that was compiled, by a backend that compiles nothing."""
    found: list[int] = []

    def note(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.append(len(graph.graph.nodes))
        return graph

    torch.compiler.reset()
    monkeypatch.setattr(compiled, "BACKEND", note)
    yield found
    torch.compiler.reset()


def wrapped(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    model = tiny.causal_lm(LlamaConfig(**(tiny.SIZES | FOUR_LAYERS))).to(dtype)
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    wrap(model, LoraConfig(r=3, lora_alpha=6, target_modules=targets, task_type="CAUSAL_LM", **KINDS[kind]))
    return model


def rows(lengths: tuple[int, ...], rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Rows that hold the invocation before their last two tokens, of which the last is the label."""
    batch = tiny.batch(rng, lengths, labelled=1)
    batch["input_ids"][:, -4:-2] = torch.tensor(INVOCATION)
    batch["input_ids"][:, -2:] = batch["labels"][:, -2:] = torch.tensor([7, 8])
    return batch


def assert_same_steps(
    model: Any, batches: list[dict[str, torch.Tensor]], rtol: float = 1e-5, **options: Any
) -> ZerothOrder:
    """Compiled steps do what eager ones do."""
    twin = copy.deepcopy(model)
    eager, ours = ZerothOrder(model, lr=1e-2, **options), ZerothOrder(twin, lr=1e-2, compile=True, **options)
    for batch in batches:
        expected, got = eager.step(batch), ours.step(batch)
        torch.testing.assert_close(got.losses, expected.losses, rtol=rtol, atol=0)
        assert expected.losses.std() > 0
        for (_, parameter), (_, other) in zip(tuned_parameters(model), tuned_parameters(twin), strict=True):
            torch.testing.assert_close(other, parameter, rtol=0, atol=100 * rtol)
    return ours


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_serves_all_layers_and_lengths(kind: str, graphs: list[int], rng: torch.Generator) -> None:
    batches = [rows(lengths, rng) for lengths in ((7, 5, 9), (8, 6), (12, 5, 9, 9))]
    zo = assert_same_steps(wrapped(kind), batches[:1], queries=3, eps=1e-2)
    most = len(graphs)
    assert 1 <= most <= 5
    for batch in batches[1:]:
        zo.step(batch)
    assert len(graphs) == most
    assert not any("forward" in vars(module) for module in zo.model.modules())


def test_kept_states_and_forward_differences(rng: torch.Generator) -> None:
    batch, model = rows((7, 5, 9), rng), wrapped("tail, upper layers")
    options: dict[str, Any] = {"estimator": "one_sided", "distribution": "rademacher", "store": StateStore()}
    assert_same_steps(model, [batch, batch], queries=2, **options)


def test_all_parameters(rng: torch.Generator) -> None:
    assert_same_steps(tiny.llama(), [rows((7, 5, 9), rng)], queries=1, eps=1e-3)


def test_a_quantised_base(rng: torch.Generator) -> None:
    model = wrapped("whole")
    quantize_base(model, "int8")
    assert_same_steps(model, [rows((7, 5, 9), rng)], queries=2)


def test_float32_products_of_onednn(
    graphs: list[int], monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """In one graph for all layers, as without them."""
    monkeypatch.setattr(float32_products, "mkl_is_slow", lambda: True)
    assert_same_steps(wrapped("whole"), [rows((7, 5, 9), rng)], queries=2)
    assert len(graphs) == 1


def test_inductor_in_bfloat16(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    assert_same_steps(wrapped("tail", torch.bfloat16), [rows((7, 5, 9), rng)], rtol=2e-2, queries=2, eps=0.1)


def test_evaluation(graphs: list[int], rng: torch.Generator) -> None:
    model, batch = wrapped("tail, upper layers"), rows((7, 5, 9), rng)
    expected = LabelledLoss(model).logits(batch)
    torch.testing.assert_close(LabelledLoss(model, compile=True).logits(batch), expected)
    assert graphs


def test_a_replay_gives_the_adapter(tmp_path: Path, rng: torch.Generator) -> None:
    model, base = wrapped("tail"), wrapped("tail")
    zo = ZerothOrder(model, queries=2, lr=1e-2, compile=True, journal=tmp_path / "run.journal")
    for lengths in ((7, 5, 9), (8, 6)):
        zo.step(rows(lengths, rng))
    assert zo.journal is not None
    zo.journal.close()
    replay(base, tmp_path / "run.journal")
    for (_, parameter), (_, other) in zip(tuned_parameters(model), tuned_parameters(base), strict=True):
        assert_same_bits(other, parameter)
        assert parameter.any()


def in_place(model: Any) -> Any:
    model.compile()
    return model


@pytest.mark.parametrize("compile", [torch.compile, in_place], ids=["torch.compile", "model.compile"])
def test_a_compiled_model_is_taken_apart(
    compile: Callable[[Any], Any], graphs: list[int], rng: torch.Generator
) -> None:
    model = wrapped("whole")
    zo = ZerothOrder(compile(model), queries=1)
    assert zo.model is model and zo.loss.compiles
    zo.step(rows((7, 5, 9), rng))
    assert len(graphs) == 1


def test_layers_that_are_compiled_already() -> None:
    model = wrapped("whole")
    model.model = torch.compile(model.model)
    with pytest.raises(ValueError, match="compile=True needs modules that are not compiled, got model"):
        ZerothOrder(model, compile=True)


def test_no_cuda_graph_of_compiled_layers() -> None:
    with pytest.raises(ValueError, match="cuda_graph=True needs compile=False"):
        ZerothOrder(wrapped("whole"), compile=True, cuda_graph=True)


@pytest.mark.parametrize("kind", ["whole", "tail"])
def test_what_cannot_be_compiled_is_no_step(
    kind: str, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    def unforeseen(module: Any, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x

    model, batch = wrapped(kind), rows((7, 5, 9), rng)
    zo = ZerothOrder(model, queries=1, compile=True)
    before = [parameter.clone() for _, parameter in tuned_parameters(model)]
    monkeypatch.setattr(LlamaMLP, "forward", unforeseen)
    message = "compile=True: torch.compile cannot take a layer of LlamaForCausalLM; use compile=False"
    with pytest.raises(RuntimeError, match=message):
        zo.step(batch)
    assert zo.steps == 0
    assert not any("forward" in vars(module) for module in model.modules())
    for (_, parameter), old in zip(tuned_parameters(model), before, strict=True):
        assert_same_bits(parameter, old)
