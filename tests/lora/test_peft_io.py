"""Adapters on disk: PEFT loads ours, we load PEFT's, and what does not fit changes nothing."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from mobizo_kernels.lora import (
    adapter_layers,
    adapter_of,
    is_wrapped,
    load_adapter,
    patterns,
    peft_save,
    save_adapter,
    wrap,
)

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
    "patterns": {"r": 2, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 4}},
    "rslora": {"r": 4, "target_modules": "all-linear", "use_rslora": True},
    "layers": {"r": 2, "target_modules": ["v_proj"], "layers_to_transform": [1]},
}
PLAIN = CONFIGS["plain"]
ids = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)


def trained(options: dict[str, Any], rng: torch.Generator) -> nn.Module:
    model = wrap(tiny.llama(), LoraConfig(**options), seed=9)
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12).view(2, 6)).logits


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


@ids
def test_peft_loads_ours(options: dict[str, Any], tmp_path: Path, rng: torch.Generator) -> None:
    model = trained(options, rng)
    save_adapter(model, tmp_path / "deep" / "adapter")
    assert sorted(file.name for file in (tmp_path / "deep" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    theirs = peft.PeftModel.from_pretrained(tiny.llama(), tmp_path / "deep" / "adapter")
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-4)


@ids
def test_we_load_what_peft_saves(options: dict[str, Any], tmp_path: Path, rng: torch.Generator) -> None:
    theirs = peft.get_peft_model(tiny.llama(), LoraConfig(**options, lora_dropout=0.1)).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=rng)
    theirs.save_pretrained(str(tmp_path))
    model = load_adapter(tiny.llama(), tmp_path)
    assert adapter_of(model).config.lora_dropout == 0.0
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-4)


@ids
def test_files_are_those_of_peft(options: dict[str, Any], tmp_path: Path, rng: torch.Generator) -> None:
    save_adapter(trained(options, rng), tmp_path / "ours")
    peft.get_peft_model(tiny.llama(), LoraConfig(**options)).save_pretrained(str(tmp_path / "theirs"))
    ours, theirs = (load_file(tmp_path / side / "adapter_model.safetensors") for side in ("ours", "theirs"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    ours, theirs = (
        json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("ours", "theirs")
    )
    assert {k: set(v) if isinstance(v, list) else v for k, v in ours.items()} == {
        k: set(v) if isinstance(v, list) else v for k, v in theirs.items()
    }


@ids
def test_round_trip(options: dict[str, Any], tmp_path: Path, rng: torch.Generator) -> None:
    model = trained(options, rng)
    save_adapter(model, tmp_path)
    fresh = load_adapter(tiny.llama(), tmp_path)
    for name, value in snapshot(model).items():
        assert_same_bits(fresh.state_dict()[name], value)
    assert_same_bits(logits(fresh), logits(model))


def test_loading_into_a_wrapped_model_keeps_its_tensors(tmp_path: Path, rng: torch.Generator) -> None:
    model = trained(PLAIN, rng)
    save_adapter(model, tmp_path)
    other = wrap(tiny.llama(), LoraConfig(**{**PLAIN, "lora_alpha": 1}), seed=1)
    held = [layer.lora_b for layer in adapter_layers(other).values()]
    load_adapter(other, tmp_path)
    assert all(b is layer.lora_b for b, layer in zip(held, adapter_layers(other).values(), strict=True))
    assert_same_bits(logits(other), logits(model))
    assert adapter_of(other).config.lora_alpha == 7


def test_saving_over_an_adapter(tmp_path: Path, rng: torch.Generator) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_adapter(trained(PLAIN, rng), tmp_path)
    model = trained(PLAIN, rng)
    save_adapter(model, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert_same_bits(logits(load_adapter(tiny.llama(), tmp_path)), logits(model))


def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(trained(PLAIN, rng), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    owners: list[tuple[object, str]] = [(peft_save, "save"), (Path, "write_bytes"), (Path, "write_text")]
    for owner, name in owners:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
            patch.setattr(owner, name, fail)
            save_adapter(trained(PLAIN, rng), tmp_path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_saving_needs_a_wrapped_model_and_a_directory(tmp_path: Path, rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM is not wrapped"):
        save_adapter(tiny.llama(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError):
        save_adapter(trained(PLAIN, rng), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def rewrite_config(directory: Path, **options: Any) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))


def break_weights(directory: Path, drop: str | None = None, add: str | None = None) -> None:
    file = directory / "adapter_model.safetensors"
    tensors = {key: value for key, value in load_file(file).items() if key != drop}
    if add:
        tensors[add] = torch.zeros(1)
    save_file(tensors, file)


def flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
BREAKAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "no-config": (
        lambda d: (d / "adapter_config.json").unlink(),
        FileNotFoundError,
        "no adapter_config.json",
    ),
    "no-weights": (
        lambda d: (d / "adapter_model.safetensors").unlink(),
        FileNotFoundError,
        "no adapter_model.safetensors",
    ),
    "torn": (
        lambda d: (d / "adapter_model.safetensors").write_bytes(b"torn"),
        ValueError,
        "cannot be read as a PEFT adapter",
    ),
    "a-bit": (
        lambda d: flip_last_bit(d / "adapter_model.safetensors"),
        ValueError,
        "cannot be read as a PEFT adapter: damaged, or changed since it was written",
    ),
    "deep": (
        lambda d: (d / "adapter_config.json").write_text("[" * 100_000),
        ValueError,
        "cannot be read as a PEFT adapter",
    ),
    "not-json": (
        lambda d: (d / "adapter_config.json").write_text("{"),
        ValueError,
        "cannot be read as a PEFT adapter",
    ),
    "not-lora": (lambda d: rewrite_config(d, peft_type="IA3"), ValueError, "expected a LoRA adapter"),
    "pissa": (
        lambda d: rewrite_config(d, init_lora_weights="pissa"),
        ValueError,
        "init_lora_weights='pissa' changes the base",
    ),
    "dora": (lambda d: rewrite_config(d, use_dora=True), ValueError, "use_dora=True is not supported"),
    "endless-target": (
        lambda d: rewrite_config(d, target_modules=r"(\w*\.?)*!"),
        ValueError,
        r"LoraConfig.target_modules: the pattern .* cannot be used: matching it takes more than 1 s",
    ),
    "endless-exclusion": (
        lambda d: rewrite_config(d, exclude_modules=r"(([a-z]|\w|\.)*)*!"),
        ValueError,
        "LoraConfig.exclude_modules: the pattern .* cannot be used: matching it takes",
    ),
    "endless-rank": (
        lambda d: rewrite_config(d, rank_pattern={"q_proj": 3, r"(.+)+!": 4}),
        ValueError,
        "LoraConfig.rank_pattern: the pattern .* cannot be used: matching it takes",
    ),
    "endless-layers": (
        lambda d: rewrite_config(d, layers_to_transform=[0], layers_pattern=["layers", "(.+)+!"]),
        ValueError,
        "LoraConfig.layers_pattern: the pattern .* cannot be used: matching it takes",
    ),
    "no-pattern": (
        lambda d: rewrite_config(d, target_modules="(q_proj"),
        ValueError,
        r"LoraConfig.target_modules: the pattern '\(q_proj' cannot be used: .*missing \)",
    ),
    "type": (lambda d: rewrite_config(d, target_modules=5), ValueError, "target_modules must be a text or"),
    "rank-type": (lambda d: rewrite_config(d, r="3"), ValueError, "LoraConfig.r must be an integer, got '3'"),
    "alpha-nan": (
        lambda d: rewrite_config(d, lora_alpha=math.nan),
        ValueError,
        "lora_alpha must be a",
    ),
    "ranks-type": (
        lambda d: rewrite_config(d, rank_pattern={"q_proj": "3"}),
        ValueError,
        "rank_pattern must be a mapping from texts to finite numbers, got",
    ),
    "task": (
        lambda d: rewrite_config(d, task_type="SEQ_CLS"),
        ValueError,
        "task_type=.*SEQ_CLS.* is not supported: PEFT would train and save the head",
    ),
    "missing": (
        lambda d: break_weights(d, drop=KEY.format("B")),
        ValueError,
        "q_proj.lora_B.weight is missing",
    ),
    "unexpected": (lambda d: break_weights(d, add="stranger"), ValueError, "stranger is unexpected"),
    "rank": (
        lambda d: break_weights(d, drop=KEY.format("A"), add=KEY.format("A")),
        ValueError,
        r"q_proj.lora_A.weight should be \[3, 32\] and is \[1\]",
    ),
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
@pytest.mark.parametrize(("breakage", "error", "message"), BREAKAGES.values(), ids=BREAKAGES)
def test_what_cannot_be_loaded_changes_nothing(
    breakage: Any,
    error: type[Exception],
    message: str,
    wrapped: bool,
    tmp_path: Path,
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 1.0)
    save_adapter(trained(PLAIN, rng), tmp_path)
    breakage(tmp_path)
    model = trained(PLAIN, rng) if wrapped else tiny.llama()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        load_adapter(model, tmp_path)
    assert is_wrapped(model) == wrapped
    after = model.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert_same_bits(after[name], value)
    assert all(parameter.requires_grad != wrapped for parameter in model.parameters())


def test_adapter_of_a_larger_model(tmp_path: Path, rng: torch.Generator) -> None:
    save_adapter(trained(PLAIN, rng), tmp_path)
    with pytest.raises(
        ValueError, match=r"does not fit LlamaForCausalLM: .*lora_B.weight should be \[64, 3\]"
    ):
        load_adapter(tiny.llama(head_dim=16), tmp_path)
