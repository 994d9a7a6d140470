"""Torch's default dtype and device, `model.half()` and inference mode change no bit of what is ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig
from torch import nn

from mobizo_kernels import reference
from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.journal import replay
from mobizo_kernels.lora import (
    adapter_layers,
    adapter_of,
    is_wrapped,
    load_adapter,
    save_adapter,
    unwrap,
    wrap,
)
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.optim import Records, StepRecord, query_seeds
from mobizo_kernels.zo import ZerothOrder
from mobizo_kernels.zo.graphed import GraphedSteps

INVOCATION = [7, 8]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# A tensor on the meta device has no values: one that is made without a device would show.
DEFAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
}
defaults = pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS)

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": ({}, {}),
    "adam": ({"layers_to_transform": [1]}, {"optimizer": "adam", "estimator": "one_sided"}),
    "activated": (
        {"alora_invocation_tokens": INVOCATION, "task_type": "CAUSAL_LM"},
        {"normalize": True, "candidate_tokens": list(range(tiny.VOCABULARY)), "optimizer": "sign"},
    ),
}


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows padded on the left that hold the invocation tokens."""
    made = tiny.batch(torch.Generator().manual_seed(seed))
    made["input_ids"][:, -4:-2] = torch.tensor(INVOCATION)
    return made


def trained(
    default: Callable[[], AbstractContextManager[Any]],
    adapter: dict[str, Any],
    options: dict[str, Any],
    graphed: bool = False,
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """A, B, and the losses and slopes of a few steps, of a model that was loaded under the usual defaults."""
    model, rows = tiny.llama(), batch()
    store = StateStore() if "alora_invocation_tokens" in adapter else None
    with default():
        wrap(model, LoraConfig(r=3, target_modules=["q_proj", "v_proj"], **adapter))
        zo = ZerothOrder(model, queries=3, lr=0.01, store=store, **options)
        if graphed:
            zo._graphed = GraphedSteps(zo.loss, zo.estimator, zo.optimizer, "gaussian")
        outputs = [zo.step(rows) for _ in range(3)]
    return (
        {key: value.clone() for key, value in model.state_dict().items() if "lora_" in key},
        [tensor for output in outputs for tensor in (output.losses, output.projected_grads)],
    )


@defaults
@pytest.mark.parametrize(("adapter", "options"), RUNS.values(), ids=RUNS)
def test_steps(
    adapter: dict[str, Any], options: dict[str, Any], default: Callable[[], AbstractContextManager[Any]]
) -> None:
    tensors, seen = trained(default, adapter, options)
    expected, expected_seen = trained(nullcontext, adapter, options)
    assert any(key.endswith("lora_b") and value.abs().max() > 0 for key, value in expected.items())
    for key, value in expected.items():
        assert value.dtype == torch.float32
        assert_same_bits(tensors[key], value)
    for got, wanted in zip(seen, expected_seen, strict=True):
        assert_same_bits(got, wanted)


@defaults
def test_static_steps(default: Callable[[], AbstractContextManager[Any]]) -> None:
    tensors, seen = trained(default, {}, {"optimizer": "adam"}, graphed=True)
    expected, expected_seen = trained(nullcontext, {}, {"optimizer": "adam"}, graphed=True)
    for got, wanted in zip([*tensors.values(), *seen], [*expected.values(), *expected_seen], strict=True):
        assert_same_bits(got, wanted)


@defaults
def test_full_parameters(default: Callable[[], AbstractContextManager[Any]]) -> None:
    models, rows = [tiny.llama(), tiny.llama()], batch()
    for model, context in zip(models, (default, nullcontext), strict=True):
        with context():
            ZerothOrder(model, queries=2, lr=1e-3, eps=1e-3).step(rows)
    for got, wanted in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_same_bits(got, wanted)


@defaults
def test_a_journal_and_its_replay(default: Callable[[], AbstractContextManager[Any]], tmp_path: Path) -> None:
    def make(path: Path) -> nn.Module:
        model = wrap(tiny.llama(), LoraConfig(r=3, target_modules=["q_proj"]))
        batches = [batch(seed) for seed in range(3)]
        with default():
            zo = ZerothOrder(model, queries=2, lr=0.01, journal=path)
            for rows in batches:
                zo.step(rows)
            assert zo.journal is not None
            zo.journal.close()
        return model

    model, other = make(tmp_path / "journal"), wrap(tiny.llama(), LoraConfig(r=3, target_modules=["q_proj"]))
    with default():
        assert replay(other, tmp_path / "journal") == 3
    for name, layer in adapter_layers(other).items():
        assert_same_bits(layer.lora_b, adapter_layers(model)[name].lora_b)


@defaults
def test_tensors_that_nobody_gave(default: Callable[[], AbstractContextManager[Any]]) -> None:
    rows, ones = [EncodedExample([5, 6, 7], 0, 1), EncodedExample([4, 5], 1, 1)], torch.ones(3)
    with default():
        skipped, none = StepRecord.skipped(2, 0.5).coeffs, Records.none(3)
        assert query_seeds(1, 0, 2).device.type == "cpu"
        collated = collate(rows, 0)
        updated, _ = reference.zo_update(ones, query_seeds(1, 0, 2), skipped, 5)
    assert skipped.tolist() == [0.0, 0.0] and skipped.dtype == none.coeffs.dtype == none.rates.dtype
    assert skipped.dtype == torch.float32 and none.coeffs.shape == (0, 3) and none.applied.dtype == torch.bool
    assert collated["input_ids"].tolist() == [[5, 6, 7], [0, 4, 5]]
    assert updated.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.compiler
def test_a_program_is_traced_with_the_usual_defaults() -> None:
    lowering = pytest.importorskip("mobizo_kernels.executorch.lowering")
    with default_dtype(torch.bfloat16), torch.device("meta"):
        with pytest.raises(ZeroDivisionError), lowering.usual_defaults():
            made = torch.zeros(1)
            raise ZeroDivisionError
        assert torch.get_default_dtype() == torch.bfloat16
        assert torch.zeros(1).device.type == "meta"
    assert made.dtype == torch.float32 and made.device.type == "cpu"


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to-dtype": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "type": lambda model: model.type(torch.bfloat16),
    "to-both": lambda model: model.to("cpu", torch.float16),
    "to-like": lambda model: model.to(torch.zeros(1, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_a_and_b_stay_as_they_are(cast: Callable[[nn.Module], nn.Module], rng: torch.Generator) -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, target_modules=["q_proj", "lm_head"]))
    before = {}
    for name, layer in adapter_layers(model).items():
        layer.lora_b.data.normal_(generator=rng)
        before[name] = (layer.lora_a, layer.lora_b, layer.lora_a.clone(), layer.lora_b.clone())
    directions = adapter_of(model).directions
    with directions.use(torch.tensor([1]), torch.tensor([0.1])):
        cast(model)
        assert directions.coeffs.dtype == torch.float32 and directions.seeds.dtype == torch.int64
    assert model.model.embed_tokens.weight.dtype != torch.float32
    for name, layer in adapter_layers(model).items():
        a, b, a_values, b_values = before[name]
        assert layer.lora_a is a and layer.lora_b is b
        assert layer.weight.dtype == model.model.embed_tokens.weight.dtype
        assert_same_bits(layer.lora_a, a_values)
        assert_same_bits(layer.lora_b, b_values)


def test_a_small_rate_moves_b_of_a_model_that_was_cast(rng: torch.Generator) -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, target_modules=["q_proj"])).to(torch.bfloat16)
    (layer, *_) = adapter_layers(model).values()
    layer.lora_b.data.normal_(generator=rng)
    before = layer.lora_b.clone()
    ZerothOrder(model, lr=1e-4).step(batch())
    assert float((layer.lora_b != before).float().mean()) > 0.9


def test_b_of_another_type_is_refused() -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, target_modules=["q_proj"]))
    adapter_layers(model)["model.layers.1.self_attn.q_proj"].lora_b.data = torch.zeros(32, 3).bfloat16()
    with pytest.raises(ValueError, match=r"LoRA-B of model.layers.1.self_attn.q_proj must be float32, got"):
        ZerothOrder(model)


def test_a_model_without_values_is_refused(tmp_path: Path) -> None:
    config = LoraConfig(r=3, target_modules=["q_proj"])
    save_adapter(wrap(tiny.llama(), config), tmp_path)
    model, message = tiny.llama().to("meta"), "the weight of model.layers.0.self_attn.q_proj is on the meta"
    with pytest.raises(ValueError, match=message):
        wrap(model, config)
    with pytest.raises(ValueError, match=message):
        load_adapter(model, tmp_path)
    assert not is_wrapped(model)


def test_autocast_rounds_the_forward_and_not_the_adapter() -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    (layer, *_) = adapter_layers(model).values()
    with torch.autocast("cpu", torch.bfloat16):
        output = ZerothOrder(model, lr=1e-4, eps=1e-2).step(batch())
    assert output.losses.dtype == layer.lora_b.dtype == torch.float32
    assert output.projected_grads.abs().min() > 0
    assert float((layer.lora_b != 0).float().mean()) > 0.9


@defaults
def test_files(
    default: Callable[[], AbstractContextManager[Any]], tmp_path: Path, rng: torch.Generator
) -> None:
    model, fresh, merged = (tiny.llama() for _ in range(3))
    wrap(model, LoraConfig(r=3, target_modules=["q_proj"]))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    with default():
        save_adapter(model, tmp_path)
        load_adapter(fresh, tmp_path)
        unwrap(load_adapter(merged, tmp_path), merge=True)
    for name, layer in adapter_layers(fresh).items():
        assert_same_bits(layer.lora_a, adapter_layers(model)[name].lora_a)
        assert_same_bits(layer.lora_b, adapter_layers(model)[name].lora_b)
    unwrap(model, merge=True)
    assert_same_bits(
        merged.model.layers[1].self_attn.q_proj.weight, model.model.layers[1].self_attn.q_proj.weight
    )
