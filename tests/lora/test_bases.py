"""What can be tuned over: each form of a base is wrapped, stepped, saved, loaded and merged."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from bases import BASES, Base, compressed, dequantised, loaded, plain
from helpers import assert_same_bits
from peft import LoraConfig
from torch import nn

import mobizo_kernels as mobizo
from mobizo_kernels.journal import replay
from mobizo_kernels.lora import adapter_layers

TARGETS = ["q_proj", "v_proj", "down_proj"]
EVERY_BASE = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def wrapped(model: Any, rng: torch.Generator, size: float = 0.3) -> Any:
    mobizo.wrap(model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM"))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(0, size, generator=rng)
    return model


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(batch["input_ids"]).logits.float()


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages, about types of theirs
        yield


@EVERY_BASE
def test_wrap_step_save_and_load(base: Base, tmp_path: Path, rng: torch.Generator) -> None:
    batch, reference = tiny.batch(rng), plain()
    model = base.make(tmp_path / "base")
    weights = {n: dequantised(module) for n, module in model.named_modules() if n.endswith("_proj")}
    assert distance(logits(model, batch), logits(reference, batch)) <= base.error
    for name, weight in weights.items():
        reference.get_submodule(name).weight.data = weight
    for one in (model, reference):
        wrapped(one, rng)
    for name, layer in adapter_layers(model).items():
        twin = adapter_layers(reference)[name]
        twin.lora_a.data.copy_(layer.lora_a)
        twin.lora_b.data.copy_(layer.lora_b)
    assert distance(logits(model, batch), logits(reference, batch)) <= base.rounding

    steps = [
        mobizo.ZerothOrder(one, queries=2, eps=3e-2, lr=0.1, journal=path)
        for one, path in ((model, tmp_path / "run.journal"), (reference, None))
    ]
    start = {name: layer.lora_b.clone() for name, layer in adapter_layers(model).items()}
    outputs = [zo.step(batch) for zo in steps]
    torch.testing.assert_close(outputs[0].losses, outputs[1].losses, rtol=base.rounding, atol=0)
    assert all(not torch.equal(layer.lora_b, start[n]) for n, layer in adapter_layers(model).items())

    mobizo.save_adapter(model, tmp_path / "adapter")
    again = mobizo.load_adapter(base.make(tmp_path / "again"), tmp_path / "adapter")
    assert_same_bits(logits(again, batch), logits(model, batch))
    for name, layer in adapter_layers(again).items():
        layer.lora_b.data.copy_(start[name])
    steps[0].close_journal()
    assert replay(again, tmp_path / "run.journal") == 1
    assert_same_bits(logits(again, batch), logits(model, batch))
    for name, layer in adapter_layers(again).items():
        layer.lora_b.data.copy_(start[name])
    # Cut off here, the run goes on over a base that was made anew.
    resumed = mobizo.ZerothOrder(
        again, queries=2, eps=3e-2, lr=0.1, journal=tmp_path / "run.journal", resume=True
    )
    for one in (steps[0], resumed):
        one.step(batch)
    assert_same_bits(logits(again, batch), logits(model, batch))


@EVERY_BASE
def test_merging(base: Base, tmp_path: Path, rng: torch.Generator) -> None:
    model = wrapped(base.make(tmp_path / "base"), rng)
    layers = adapter_layers(model)
    weights = {name: dequantised(layer.base_layer) for name, layer in layers.items()}
    exact = {
        name: weights[name].double() + layer.scaling * (layer.lora_b.double() @ layer.lora_a.double())
        for name, layer in layers.items()
    }
    if base.merges == "ours":
        ours = mobizo.unwrap(copy.deepcopy(model), merge=True)
        merged = mobizo.to_peft(model).merge_and_unload()
        for name, value in exact.items():
            mine, theirs = ours.get_submodule(name).weight, merged.get_submodule(name).weight
            assert mine.dtype == theirs.dtype
            spacing = torch.finfo(mine.dtype).eps * value.abs()
            assert ((mine.double() - value).abs() <= 0.51 * spacing + 1e-7).all()
            assert ((theirs.double() - value).abs() <= 2 * spacing + 1e-5).all()
        return
    with pytest.raises(ValueError, match=r"merge=True needs plain linears, but model.layers.0"):
        mobizo.unwrap(model, merge=True)
    theirs = mobizo.to_peft(model)
    if base.merges != "peft":
        with pytest.raises(ValueError, match=base.merges):
            theirs.merge_and_unload()
        return
    merged = theirs.merge_and_unload()  # dequantised, added, and quantised again
    for name, value in exact.items():
        got = dequantised(merged.get_submodule(name)).double()
        bits = 4 if type(merged.get_submodule(name)).__name__ == "Linear4bit" else 8
        step = value.abs().amax(1, keepdim=True) / (4 if bits == 4 else 127)
        assert ((got - value).abs() <= step).all(), name
        assert got.dtype == torch.float64 and not torch.equal(got, weights[name].double())


def test_compressed_weights_are_asked_for(tmp_path: Path, rng: torch.Generator) -> None:
    model = compressed(4, dequantize=False)(tmp_path)
    with pytest.raises(ValueError, match=r"still compressed.*CompressedTensorsConfig\(dequantize=True\)"):
        wrapped(model, rng)
    batch = tiny.batch(rng)
    expected = logits(model, batch)  # which makes the weights
    mobizo.wrap(model, LoraConfig(r=4, target_modules=TARGETS))
    assert_same_bits(logits(model, batch), expected)
    assert mobizo.ZerothOrder(model, queries=2, lr=0.1).step(batch).losses.isfinite().all()


def test_outliers_of_llm_int8_are_refused(tmp_path: Path, rng: torch.Generator) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    plain().save_pretrained(tmp_path)
    model = wrapped(loaded(tmp_path, BitsAndBytesConfig(load_in_8bit=True)), rng)
    with pytest.raises(ValueError, match="load the model with llm_int8_threshold=0"):
        mobizo.ZerothOrder(model)
