"""A live PeftModel: taken over, tuned, and given back with the values that the steps made."""

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
from torch import nn

import mobizo_kernels as mobizo
from mobizo_kernels.lora import adapter_layers, bare, is_wrapped
from mobizo_kernels.lora.peft_save import parameters_by_key

OPTIONS: dict[str, Any] = {
    "r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "causal": {"task_type": "CAUSAL_LM"},
    "generic": {},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "rslora": {"use_rslora": True, "target_modules": "all-linear"},
    "layers": {"layers_to_transform": [1]},
    "activated": {"alora_invocation_tokens": [5, 6], "task_type": "CAUSAL_LM"},
}
BATCH = {"input_ids": torch.tensor([[3, 9, 5, 6, 8, 4], [7, 5, 6, 11, 12, 13]])}
BATCH["labels"] = BATCH["input_ids"].clone()
BATCH["labels"][:, :-1] = -100


def made(rng: torch.Generator, name: str = "default", **options: Any) -> PeftModel:
    """A PeftModel in eval mode whose B is not zero."""
    config = LoraConfig(**{**OPTIONS, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny.llama(), config, adapter_name=name).eval()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(generator=rng)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=BATCH["input_ids"]).logits


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    assert not is_wrapped(model)
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert_same_bits(value, before[name])


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_taken_over_tuned_and_given_back(options: dict[str, Any], rng: torch.Generator) -> None:
    model = made(rng, **options)
    before = logits(model)
    zo = mobizo.ZerothOrder(model, queries=2, lr=0.1)
    assert zo.model is bare(model) and is_wrapped(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    first = {key: tensor.clone() for key, tensor in parameters_by_key(model).items()}
    zo.step(BATCH)
    tuned = {key: tensor.clone() for key, tensor in parameters_by_key(model).items()}
    assert all(torch.equal(first[key], tuned[key]) == ("lora_A" in key) for key in tuned)
    trained = logits(model)

    assert mobizo.to_peft(model) is model and not is_wrapped(model)
    torch.testing.assert_close(logits(model), trained, rtol=1e-5, atol=1e-4)
    theirs = peft.get_peft_model_state_dict(model)
    assert theirs.keys() == tuned.keys()
    for key, tensor in theirs.items():
        assert_same_bits(tensor.detach(), tuned[key])
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert model.peft_config["default"].lora_dropout == 0.1
    if "alora_invocation_tokens" not in options:
        merged = model.merge_and_unload()
        torch.testing.assert_close(logits(merged), trained, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_an_adapter_of_ours_becomes_one_of_peft(options: dict[str, Any], rng: torch.Generator) -> None:
    model = mobizo.wrap(tiny.llama(), LoraConfig(**{**OPTIONS, **options, "lora_dropout": 0.0}))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    expected, values = logits(model), {k: v.clone() for k, v in parameters_by_key(model).items()}
    theirs = mobizo.to_peft(model)
    assert isinstance(theirs, PeftModel) and not is_wrapped(theirs)
    torch.testing.assert_close(logits(theirs), expected, rtol=1e-5, atol=1e-4)
    for key, tensor in peft.get_peft_model_state_dict(theirs).items():
        assert_same_bits(tensor.detach(), values[key])
    again = mobizo.wrap(theirs)  # and back
    assert_same_bits(logits(again), expected)


def test_steps_are_those_of_a_wrapped_model(rng: torch.Generator) -> None:
    theirs, ours = made(rng, lora_dropout=0.0), tiny.llama()
    mobizo.wrap(ours, LoraConfig(**{**OPTIONS, "lora_dropout": 0.0}))
    mobizo.wrap(theirs)
    for key, tensor in parameters_by_key(ours).items():
        tensor.data.copy_(parameters_by_key(theirs)[key])
    for model in (ours, theirs):
        zo = mobizo.ZerothOrder(model, queries=2, lr=0.1)
        zo.step(BATCH)
    for key, tensor in parameters_by_key(ours).items():
        assert_same_bits(parameters_by_key(theirs)[key], tensor)


def test_files(tmp_path: Path, rng: torch.Generator) -> None:
    model = mobizo.wrap(made(rng, task_type="CAUSAL_LM"))
    expected = logits(model)
    model.save_pretrained(tmp_path / "theirs")
    mobizo.save_adapter(model, tmp_path / "ours")
    for side in ("ours", "theirs"):
        loaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / side)
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-4)
    for layer in adapter_layers(model).values():
        layer.lora_b.data.zero_()
    mobizo.load_adapter(model, tmp_path / "ours")
    assert_same_bits(logits(model), expected)


def test_half_precision_adapters_are_widened(rng: torch.Generator) -> None:
    model = made(rng).to(torch.bfloat16)
    mobizo.wrap(model)
    assert all(layer.lora_b.dtype == torch.float32 for layer in adapter_layers(model).values())
    mobizo.to_peft(model)
    assert all(value.dtype == torch.float32 for value in peft.get_peft_model_state_dict(model).values())


def test_a_replayed_journal(tmp_path: Path, rng: torch.Generator) -> None:
    model = made(rng)
    start = copy.deepcopy(model)
    zo = mobizo.ZerothOrder(model, queries=2, lr=0.1, journal=tmp_path / "run.journal")
    zo.step(BATCH)
    from mobizo_kernels.journal import replay

    assert replay(mobizo.wrap(start), tmp_path / "run.journal") == 1
    assert_same_bits(logits(start), logits(model))


@pytest.mark.parametrize(
    "method", ["add_adapter", "disable_adapter", "load_adapter", "merge_adapter", "set_adapter"]
)
def test_methods_of_peft_wait(method: str, rng: torch.Generator) -> None:
    model = mobizo.wrap(made(rng))
    with pytest.raises(ValueError, match=rf"{method}: .* call to_peft\(model\) first"):
        getattr(model, method)("default")
    with pytest.raises(ValueError, match=r"PeftModel; call to_peft\(model\) first"):
        mobizo.unwrap(model)


def test_refusals_leave_the_model_as_it_was(rng: torch.Generator) -> None:
    def refused(model: PeftModel, words: str, config: LoraConfig | None = None) -> None:
        before = snapshot(model)
        with pytest.raises(ValueError, match=words):
            mobizo.wrap(model, config)
        assert_unchanged(model, before)

    refused(made(rng), "config must be left out", LoraConfig(**OPTIONS))
    refused(made(rng, use_dora=True), "use_dora=True is not supported")
    refused(made(rng, modules_to_save=["lm_head"]), "modules_to_save")
    merged = made(rng)
    merged.merge_adapter()
    refused(merged, r"'default' is merged .* unmerge_adapter\(\)")
    off = made(rng)
    off.base_model.disable_adapter_layers()
    refused(off, r"'default' is off; call enable_adapter_layers\(\)")
    scaled = made(rng)
    scaled.get_base_model().model.layers[0].self_attn.q_proj.set_scale("default", 3.0)
    refused(scaled, "has rank 3 and alpha 21 at .*q_proj, where its LoraConfig says 3 and 7")
    prompt = peft.get_peft_model(
        tiny.llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="'default' must be a LoRA, got"):
        mobizo.wrap(prompt)


def test_an_error_of_the_step_gives_the_adapter_back(rng: torch.Generator) -> None:
    model = made(rng)
    before = snapshot(model)
    with pytest.raises(ValueError, match="candidate"):
        mobizo.ZerothOrder(model, candidate_tokens=[10**6])
    assert_unchanged(model, before)


def test_without_a_configuration() -> None:
    with pytest.raises(ValueError, match=r"config must be a peft.LoraConfig for LlamaForCausalLM, got None"):
        mobizo.wrap(tiny.llama())


def test_a_compiled_peft_model(rng: torch.Generator) -> None:
    model = made(rng)
    zo = mobizo.ZerothOrder(torch.compile(model))
    assert zo.loss.compiles and zo.model is bare(model)
