"""A PeftModel with several adapters: one is tuned under its name, the others come back as they were."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn

import mobizo_kernels as mobizo
from mobizo_kernels.lora import adapter_layers, bare, is_wrapped, saved_adapter
from mobizo_kernels.lora.peft_save import parameters_by_key

CONFIGS: dict[str, dict[str, Any]] = {
    "first": {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1},
    "second": {"r": 2, "lora_alpha": 5, "target_modules": ["k_proj", "v_proj"], "use_rslora": True},
    "third": {"r": 2, "target_modules": ["up_proj"], "use_dora": True},
}
BATCH = {"input_ids": torch.tensor([[3, 9, 5, 6, 8, 4], [7, 5, 6, 11, 12, 13]])}
BATCH["labels"] = BATCH["input_ids"].clone()
BATCH["labels"][:, :-1] = -100


def made(rng: torch.Generator, *names: str, **more: dict[str, Any]) -> PeftModel:
    """A PeftModel with these adapters, the first of them active, whose B is not zero."""
    configs = {name: LoraConfig(**options) for name, options in {**CONFIGS, **more}.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny.llama(), configs[names[0]], adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, configs[name])
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(generator=rng)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=BATCH["input_ids"]).logits


def values(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    state = peft.get_peft_model_state_dict(model, adapter_name=name)
    return {key: value.detach().clone() for key, value in state.items()}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert_same_bits(value, right[key])


@pytest.mark.parametrize("tuned", ["first", "second"])
def test_one_is_tuned_and_the_others_stay(tuned: str, tmp_path: Path, rng: torch.Generator) -> None:
    model = made(rng, "first", "second", "third")
    model.set_adapter(tuned)
    before, start = {name: values(model, name) for name in CONFIGS}, logits(model)
    names, needed = list(model.state_dict()), {n: p.requires_grad for n, p in model.named_parameters()}
    zo = mobizo.ZerothOrder(model, queries=2, lr=0.1)
    torch.testing.assert_close(logits(model), start, rtol=1e-5, atol=1e-4)
    assert set(adapter_layers(bare(model))) == {
        f"model.layers.{layer}.self_attn.{linear}"
        for layer in (0, 1)
        for linear in CONFIGS[tuned]["target_modules"]
    }
    zo.step(BATCH)
    trained = logits(model)
    assert mobizo.to_peft(model) is model and not is_wrapped(model)
    assert list(model.active_adapters) == [tuned] and list(model.peft_config) == list(CONFIGS)
    assert list(model.state_dict()) == names
    assert {n: p.requires_grad for n, p in model.named_parameters()} == needed
    torch.testing.assert_close(logits(model), trained, rtol=1e-5, atol=1e-4)
    for name, kept in before.items():
        now = values(model, name)
        changed = {key for key, value in now.items() if not torch.equal(value, kept[key])}
        assert changed == ({key for key in now if "lora_B" in key} if name == tuned else set())

    # Another adapter's turn, from where this one ended.
    other = next(name for name in CONFIGS if name != tuned)
    model.set_adapter(other)
    mobizo.ZerothOrder(model, queries=2, lr=0.1).step(BATCH)
    mobizo.to_peft(model)
    assert any(not torch.equal(v, before[other][key]) for key, v in values(model, other).items())


def test_steps_are_those_of_the_adapter_alone(rng: torch.Generator) -> None:
    several = made(rng, "first", "second")
    alone = made(rng, "first")
    peft.set_peft_model_state_dict(alone, values(several, "first"), adapter_name="first")
    for model in (several, alone):
        mobizo.ZerothOrder(model, queries=2, lr=0.1).step(BATCH)
        mobizo.to_peft(model)
    assert_same(values(several, "first"), values(alone, "first"))


def test_directories_are_those_of_peft(tmp_path: Path, rng: torch.Generator) -> None:
    model = made(rng, "first", "second")
    model.save_pretrained(tmp_path / "theirs")
    expected = {name: values(model, name) for name in ("first", "second")}
    mobizo.wrap(model)
    held = adapter_layers(bare(model))
    model.save_pretrained(tmp_path / "ours")
    assert adapter_layers(bare(model)) == held  # PEFT's linears were in the model to be saved
    assert saved_adapter(model, tmp_path / "ours") == tmp_path / "ours" / "first"

    def weights(side: str) -> set[Path]:
        return {path.relative_to(tmp_path / side) for path in (tmp_path / side).rglob("adapter_*")}

    assert weights("ours") == weights("theirs") and len(weights("ours")) == 4
    for name, tensors in expected.items():
        assert_same(load_file(tmp_path / "ours" / name / "adapter_model.safetensors"), tensors)
    again = PeftModel.from_pretrained(tiny.llama(), tmp_path / "ours" / "first", adapter_name="first")
    again.load_adapter(tmp_path / "ours" / "second", adapter_name="second")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-4)
    for layer in held.values():
        layer.lora_b.data.zero_()
    mobizo.load_adapter(model, saved_adapter(model, tmp_path / "ours"))
    assert_same(dict(parameters_by_key(bare(model))), expected["first"])
    model.save_pretrained(tmp_path / "one", selected_adapters=["second"])
    assert {path.name for path in (tmp_path / "one").iterdir() if path.is_dir()} == {"second"}
    for arguments, words in (
        ({"selected_adapters": ["fourth"]}, "must be of 'first', 'second', got 'fourth'"),
        ({"safe_serialization": False}, "needs safe_serialization=True"),
    ):
        with pytest.raises(ValueError, match=words):
            model.save_pretrained(tmp_path / "none", **arguments)
    assert not (tmp_path / "none").exists()


def test_the_adapter_called_default_has_no_directory(tmp_path: Path, rng: torch.Generator) -> None:
    model = mobizo.wrap(made(rng, "default", "second", default=CONFIGS["first"]))
    model.save_pretrained(tmp_path)
    assert saved_adapter(model, tmp_path) == tmp_path
    assert {path.parent.relative_to(tmp_path) for path in tmp_path.rglob("adapter_model*")} == {
        Path(),
        Path("second"),
    }


def test_merging_gives_the_adapter_back_first(rng: torch.Generator) -> None:
    model = made(rng, "first", "second")
    twin = copy.deepcopy(model)
    mobizo.wrap(model)
    merged, expected = model.merge_and_unload(), twin.merge_and_unload()
    assert type(merged) is type(tiny.llama()) and not is_wrapped(merged)
    assert_same(merged.state_dict(), expected.state_dict())
    model = mobizo.wrap(made(rng, "first"))
    plain = model.unload()
    assert_same(plain.state_dict(), tiny.llama().state_dict())


def test_refusals_name_the_adapter(rng: torch.Generator) -> None:
    def refused(model: PeftModel, words: str) -> None:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=words):
            mobizo.wrap(model)
        assert not is_wrapped(model)
        assert_same(model.state_dict(), before)

    both = made(rng, "first", "second")
    both.base_model.set_adapter(["first", "second"])
    refused(both, "one adapter of .* must be active, got 'first', 'second'; call set_adapter")
    merged = made(rng, "first", "second")
    merged.base_model.merge_adapter(adapter_names=["second"])
    refused(merged, r"adapter 'second' is merged into .*; call unmerge_adapter\(\) first")
    rest = {"r": 2, "target_modules": ["q_proj"]}
    for name, options in {
        "other": {"modules_to_save": ["lm_head"]},
        "pissa": {"init_lora_weights": "pissa"},
    }.items():
        model = made(rng, "first", name, **{name: {**rest, **options}})
        model.set_adapter("first")
        refused(model, rf"adapter '{name}', which is not to be tuned, cannot stay in .*{next(iter(options))}")
