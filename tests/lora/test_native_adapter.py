"""The adapter file of the native trainer: what is in it, to PEFT and back to the bit, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from helpers import full_disk
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny_texts import save_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from mobizo_kernels.cli import main
from mobizo_kernels.lora import (
    adapter_config,
    adapter_layers,
    device_from_peft,
    load_adapter,
    model_fingerprint,
    peft_from_device,
    save_adapter,
    save_device_adapter,
    wrap,
)

CONFIG: dict[str, Any] = {
    "r": 3,
    "lora_alpha": 5,
    "target_modules": ["v_proj", "q_proj", "down_proj"],
    "rank_pattern": {"down_proj": 2},
    "use_rslora": True,
}


def trained(rng: torch.Generator, model: Any = None, **options: Any) -> PreTrainedModel:
    wrapped = wrap(model or tiny.llama(), LoraConfig(**{**CONFIG, **options}), seed=5)
    for layer in adapter_layers(wrapped).values():
        layer.lora_b.data.normal_(generator=rng)
    return wrapped


def metadata_of(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + size])["__metadata__"]


def test_the_file(tmp_path: Path, rng: torch.Generator) -> None:
    model, path = trained(rng), tmp_path / "new" / "adapter.safetensors"
    save_device_adapter(model, path)
    tensors = load_file(path)
    layers = adapter_layers(model)
    assert len(layers) == 6 and len(tensors) == 12
    for name, layer in layers.items():
        assert torch.equal(tensors[f"base_model.model.{name}.lora_A.weight"], layer.lora_a)
        assert torch.equal(tensors[f"base_model.model.{name}.lora_B.weight"], layer.lora_b)
    metadata = metadata_of(path)
    assert metadata.keys() == {"format", "adapter_config", "base_fingerprint", "checksum"}
    assert metadata["format"] == "pt"
    assert metadata["base_fingerprint"] == model_fingerprint(tiny.llama())
    config = json.loads(metadata["adapter_config"])
    assert config == json.loads(json.dumps(adapter_config(model)))
    assert (config["peft_type"], config["r"], config["rank_pattern"]) == ("LORA", 3, {"down_proj": 2})
    assert config["target_modules"] == sorted(CONFIG["target_modules"])
    assert config["auto_mapping"]["base_model_class"] == "LlamaForCausalLM"


def test_peft_gives_the_logits_of_the_wrapped_model(tmp_path: Path, rng: torch.Generator) -> None:
    model, path = trained(rng), tmp_path / "adapter.safetensors"
    save_device_adapter(model, path)
    peft_from_device(path, tmp_path / "peft")
    tuned = peft.PeftModel.from_pretrained(tiny.llama(), tmp_path / "peft")
    tokens = torch.randint(3, tiny.VOCABULARY, (3, 9), generator=rng)
    with torch.no_grad():
        expected, plain = model(tokens).logits, tiny.llama()(tokens).logits
        torch.testing.assert_close(tuned(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 0.1
    other = load_adapter(tiny.llama(), tmp_path / "peft")
    with torch.no_grad():
        assert torch.equal(other(tokens).logits, expected)


def test_round_trips_lose_nothing(tmp_path: Path, rng: torch.Generator) -> None:
    path, back = tmp_path / "adapter.safetensors", tmp_path / "back.safetensors"
    save_device_adapter(trained(rng), path)
    peft_from_device(path, tmp_path / "peft")
    device_from_peft(tiny.llama(), tmp_path / "peft", back)
    assert back.read_bytes() == path.read_bytes()

    model = trained(rng, target_modules=["o_proj"], rank_pattern={})
    save_adapter(model, tmp_path / "other")
    device_from_peft(tiny.llama(), tmp_path / "other", back)
    peft_from_device(back, tmp_path / "again")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("other", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    configs = [(tmp_path / name / "adapter_config.json").read_text() for name in ("other", "again")]
    assert configs[0] == configs[1]


def test_a_half_precision_adapter_is_widened(tmp_path: Path, rng: torch.Generator) -> None:
    save_adapter(trained(rng), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(half, weights, metadata={"format": "pt"})
    device_from_peft(tiny.llama(), tmp_path, tmp_path / "wide.safetensors")
    for name, tensor in load_file(tmp_path / "wide.safetensors").items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, half[name].float())


def test_fingerprints_of_models(rng: torch.Generator) -> None:
    known = model_fingerprint(tiny.llama())
    assert len(known) == 32
    assert model_fingerprint(trained(rng)) == known
    compiled = tiny.llama()
    compiled.model = torch.compile(compiled.model, backend="eager")
    assert model_fingerprint(compiled) == known
    half = tiny.llama().bfloat16()
    assert model_fingerprint(half) == model_fingerprint(tiny.llama().bfloat16().float()) != known

    tied = tiny.llama(tie_word_embeddings=True)
    assert model_fingerprint(tied) != known
    everything = ["q_proj", "lm_head"]
    assert model_fingerprint(
        trained(rng, tied, target_modules=everything, rank_pattern={})
    ) == model_fingerprint(tiny.llama(tie_word_embeddings=True))
    for change in ("value", "name", "shape"):
        model = tiny.llama()
        if change == "value":
            model.model.layers[1].mlp.up_proj.weight.data[-1, -1] += 1e-3
        elif change == "name":
            first, second = model.model.layers
            first.self_attn.k_proj, first.self_attn.v_proj = first.self_attn.v_proj, first.self_attn.k_proj
            assert second is not first
        else:
            norm = model.model.norm
            norm.weight = torch.nn.Parameter(norm.weight.data[None])
        assert model_fingerprint(model) != known, change


def test_every_truncation(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "adapter.safetensors"
    save_device_adapter(trained(rng, target_modules=["q_proj"], layers_to_transform=[1]), path)
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"adapter {path} cannot be read"):
            peft_from_device(path, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize(
    ("spoil", "metadata", "message"),
    [
        ("", {"adapter_config": None}, "no device adapter: expected adapter_config in its metadata, got"),
        ("", {"adapter_config": "{"}, "its adapter_config cannot be understood"),
        ("", {"adapter_config": "[]"}, "its adapter_config cannot be understood"),
        ("", {"adapter_config": '{"peft_type": "NONE"}'}, "its adapter_config cannot be understood"),
        ("", {"adapter_config": '{"peft_type": "IA3"}'}, "expected the adapter_config of a LoRA"),
        ("half", {}, "expected float32 matrices .* got base_model.*, BF16"),
        ("flat", {}, "expected float32 matrices"),
        ("name", {}, "expected float32 matrices .* got model.norm.weight"),
        ("alone", {}, "expected pairs of A and B, got one alone of .*q_proj"),
        ("empty", {}, "expected pairs of A and B, got one alone of none"),
        ("rank", {}, "expected one rank for A and B of .*q_proj, got 2 and 3"),
    ],
)
def test_what_is_no_device_adapter(
    spoil: str, metadata: dict[str, Any], message: str, tmp_path: Path, rng: torch.Generator
) -> None:
    path = tmp_path / "adapter.safetensors"
    save_device_adapter(trained(rng), path)
    tensors = load_file(path)
    a = next(name for name in tensors if "q_proj.lora_A" in name)
    tensors |= {
        "half": {a: tensors[a].bfloat16()},
        "flat": {a: tensors[a].flatten()},
        "name": {"model.norm.weight": torch.ones(3, 3)},
        "rank": {a: tensors[a][:2].clone()},
    }.get(spoil, {})
    if spoil == "alone":
        del tensors[a]
    metadata = {**metadata_of(path), "checksum": None, **metadata}
    values = {name: text for name, text in metadata.items() if text is not None}
    save_file({} if spoil == "empty" else tensors, path, values)
    with pytest.raises(ValueError, match=f"adapter {path}.*{message}"):
        peft_from_device(path, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_another_base_model_is_refused(tmp_path: Path, rng: torch.Generator) -> None:
    save_device_adapter(trained(rng), tmp_path / "adapter.safetensors")
    peft_from_device(tmp_path / "adapter.safetensors", tmp_path / "peft")
    other = tiny.llama()
    other.model.norm.weight.data += 1
    with pytest.raises(ValueError, match="of another base model: its base_fingerprint is"):
        device_from_peft(other, tmp_path / "peft", tmp_path / "back.safetensors")
    with pytest.raises(ValueError, match="does not fit LlamaForCausalLM"):
        device_from_peft(
            tiny.llama(hidden_act="gelu", head_dim=4), tmp_path / "peft", tmp_path / "back.safetensors"
        )
    assert not (tmp_path / "back.safetensors").exists()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "adapter.safetensors"
    save_device_adapter(trained(rng), path)
    before = path.read_bytes()
    with full_disk(500), pytest.raises(OSError, match=f"{path} cannot be written .File too large"):
        save_device_adapter(trained(rng), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main.run(["adapter", *map(str, arguments)])
    return int(exit_info.value.code or 0)


def test_the_command(tmp_path: Path, rng: torch.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"--model={save_model(tmp_path / 'model')}"
    wrapped = trained(rng, AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    device, directory = tmp_path / "adapter.safetensors", tmp_path / "peft"
    save_device_adapter(wrapped, device)
    assert run(device, directory) == 0
    assert "PEFT directory" in capsys.readouterr().out
    assert run(directory, tmp_path / "back.safetensors", model, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["made"] == "device adapter"
    assert (tmp_path / "back.safetensors").read_bytes() == device.read_bytes()

    for arguments, message in (
        ((device, directory), "is not empty; name another directory, or add --overwrite"),
        ((directory, tmp_path / "back.safetensors", model), "back.safetensors' exists; name another file"),
        ((directory, tmp_path / "new.safetensors"), "model: expected --model"),
        ((tmp_path / "absent", tmp_path / "new"), "adapter: there is no file"),
        ((tmp_path / "model", tmp_path / "new", model), "holds no adapter_config.json"),
        ((tmp_path / "model" / "config.json", tmp_path / "new"), "config.json cannot be read"),
        ((directory, tmp_path / "new", f"{model}x"), "there is none"),
    ):
        assert run(*arguments) == 2
        sentence = capsys.readouterr().err.splitlines()[-1]
        assert sentence.startswith("mobizo: ") and message in sentence
    assert not (tmp_path / "new").exists()
    assert run(device, directory, "--overwrite") == 0
    assert run(directory, tmp_path / "back.safetensors", model, "--overwrite") == 0


def test_patterns_stay_in_the_order_in_which_they_are_tried(tmp_path: Path, rng: torch.Generator) -> None:
    """PEFT takes the first that matches, and by their names these two are the other way round."""
    patterns = {"self_attn.q_proj": 2, "q_proj": 1}
    model = trained(rng, rank_pattern=patterns, alpha_pattern={"self_attn.v_proj": 9, "v_proj": 1})
    save_device_adapter(model, file := tmp_path / "adapter.safetensors")
    assert list(json.loads(metadata_of(file)["adapter_config"])["rank_pattern"]) == list(patterns)
    peft_from_device(file, tmp_path / "peft")
    base = tiny.llama()
    loaded = peft.PeftModel.from_pretrained(tiny.llama(), str(tmp_path / "peft"))
    ours = load_adapter(base, tmp_path / "peft")
    for name, layer in adapter_layers(model).items():
        theirs = loaded.get_base_model().get_submodule(name)
        again = adapter_layers(ours)[name]
        assert theirs.scaling["default"] == layer.scaling == again.scaling
        assert torch.equal(theirs.lora_B["default"].weight, layer.lora_b)
        assert torch.equal(again.lora_b, layer.lora_b)
