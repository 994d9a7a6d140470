"""Adapters of ours by the rules of engines that serve them: what vLLM and llama.cpp would compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from torch import nn

import mobizo_kernels as mobizo
from mobizo_kernels.lora import adapt_head, adapter_layers

Deltas = dict[str, torch.Tensor]
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
    "all-linear": {"target_modules": "all-linear"},
    "layers": {"target_modules": ["down_proj"], "layers_to_transform": [1]},
    "rslora": {"target_modules": ["o_proj"], "use_rslora": True},
    "ranks": {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}},
    "alphas": {"target_modules": ["q_proj", "k_proj"], "alpha_pattern": {"q_proj": 3}},
    "readout": {"target_modules": ["v_proj"]},
    "activated": {
        "target_modules": ["v_proj"],
        "alora_invocation_tokens": [5, 6],
        "task_type": "CAUSAL_LM",
    },
}
# Which adapters an engine computes as PEFT does: the table of docs/adapters.md.
SAME = {
    "vllm": {"plain", "all-linear", "layers", "rslora"},
    "llama.cpp": {"plain", "all-linear", "layers", "ranks", "activated"},
}


def wrapped(kind: str, rng: torch.Generator) -> Any:
    options = {"r": 3, "lora_alpha": 7, **CONFIGS[kind]}
    model = mobizo.wrap(tiny.llama(), LoraConfig(**options))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    if kind == "readout":
        words = torch.randn(2, 1, generator=rng)
        adapt_head(model, torch.tensor([4, 9]), torch.randn(1, 32, generator=rng), words)
    return model


def deltas(model: nn.Module) -> Deltas:
    """What the adapter adds to each weight."""
    return {n: m.scaling * (m.lora_b @ m.lora_a).detach() for n, m in adapter_layers(model).items()}


def vllm(directory: Path) -> tuple[Deltas, bool]:
    """What vLLM adds to each weight, and whether it does so for some tokens only.

    The configuration: `PEFTHelper` of
    https://github.com/vllm-project/vllm/blob/main/vllm/lora/peft_helper.py, which drops fields that it does
    not know, patterns and invocation tokens among them. Names: `parse_fine_tuned_lora_name` of
    https://github.com/vllm-project/vllm/blob/main/vllm/lora/utils.py, and `check_unexpected_modules` of
    https://github.com/vllm-project/vllm/blob/main/vllm/lora/lora_model.py.
    """
    config = json.loads((directory / "adapter_config.json").read_text())
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert not config.get("modules_to_save") and not config.get("use_dora")
    assert config.get("bias", "none") == "none" and not config.get("target_parameters")
    rank = config["r"]
    scaling = config["lora_alpha"] / (rank**0.5 if config["use_rslora"] else rank)
    expected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(directory / "adapter_model.safetensors").items():
        prefix, root, *path, factor, weight = name.split(".")
        assert (prefix, root, weight) == ("base_model", "model", "weight")
        assert factor in ("lora_A", "lora_B") and path[-1] in expected
        factors.setdefault(".".join(path), {})[factor] = tensor
    assert all(pair["lora_A"].shape[0] <= max(16, rank) for pair in factors.values())
    return {name: scaling * pair["lora_B"] @ pair["lora_A"] for name, pair in factors.items()}, False


def llama_cpp(directory: Path, gguf: Any, tied: bool = False) -> tuple[Deltas, bool]:
    """The same of llama.cpp, after `convert_lora_to_gguf.py`.

    https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py takes names and one alpha,
    `get_scale` of https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.h divides it by the
    rank of each tensor. The names in a GGUF file are asked of its own package.
    """
    config = json.loads((directory / "adapter_config.json").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(directory / "adapter_model.safetensors").items():
        assert name.endswith((".lora_A.weight", ".lora_B.weight")), "an unexpected name ends the conversion"
        path, _, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if path == "lm_head" and tied:
            raise ValueError("lm_head is present in adapter, but is ignored in base model")
        assert names.get_name(f"{path}.weight", try_suffixes=(".weight",)), path
        factors.setdefault(path, {})[factor] = tensor
    result = {}
    for path, pair in factors.items():
        assert pair["lora_A"].shape[-2] == pair["lora_B"].shape[-1]
        scale = config["lora_alpha"] / pair["lora_B"].shape[-1] if config["lora_alpha"] else 1.0
        result[path] = scale * pair["lora_B"] @ pair["lora_A"]
    return result, config.get("alora_invocation_tokens") is not None


@pytest.mark.parametrize("uniform", [False, True], ids=["as-tuned", "uniform"])
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("engine", SAME)
def test_what_an_engine_computes(
    engine: str, kind: str, uniform: bool, tmp_path: Path, rng: torch.Generator
) -> None:
    model = wrapped(kind, rng)
    mobizo.save_adapter(model, tmp_path, uniform=uniform)
    if engine == "vllm":
        got, on_some_tokens = vllm(tmp_path)
    else:
        got, on_some_tokens = llama_cpp(tmp_path, pytest.importorskip("gguf"))
    expected = deltas(model)
    assert got.keys() == expected.keys()
    same = all(torch.allclose(got[name], value, rtol=1e-5, atol=1e-5) for name, value in expected.items())
    if kind == "activated":
        same = same and on_some_tokens
    assert same == (kind in SAME[engine] or (uniform and kind != "activated"))


def test_a_tied_head_is_refused_by_llama_cpp(tmp_path: Path, rng: torch.Generator) -> None:
    mobizo.save_adapter(wrapped("readout", rng), tmp_path, uniform=True)
    with pytest.raises(ValueError, match="ignored in base model"):
        llama_cpp(tmp_path, pytest.importorskip("gguf"), tied=True)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_uniform_adapter_is_the_same_adapter(kind: str, tmp_path: Path, rng: torch.Generator) -> None:
    model, ids = wrapped(kind, rng), torch.tensor([[3, 9, 5, 6, 8, 4]])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mobizo.save_adapter(model, tmp_path, uniform=True)
    for name, value in model.state_dict().items():
        assert_same_bits(value, before[name])
    theirs = PeftModel.from_pretrained(tiny.llama(), str(tmp_path))
    ours = mobizo.load_adapter(tiny.llama(), tmp_path)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(ours(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(theirs(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-4)
    assert len({layer.rank for layer in adapter_layers(ours).values()}) == 1
    assert {layer.scaling for layer in adapter_layers(ours).values()} == {1.0}
