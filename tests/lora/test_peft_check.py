"""What the files of an adapter would not say is refused when a model is wrapped or saved."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Glm4MoeConfig,
    MambaConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    Trainer,
    TrainingArguments,
)

from mobizo_kernels.lora import (
    adapter_config,
    adapter_layers,
    is_wrapped,
    load_adapter,
    peft_from_device,
    peft_save,
    save_adapter,
    save_device_adapter,
    unwrap,
    wrap,
)

MOE: dict[str, Any] = {
    **tiny.SIZES,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
}
FILES = ["adapter_config.json", "adapter_model.safetensors"]


def config(*targets: str, **options: Any) -> LoraConfig:
    return LoraConfig(r=3, lora_alpha=6, target_modules=list(targets or ("q_proj",)), **options)


def glm4_moe() -> Any:
    """Its first layer has a plain MLP, its second one fused experts beside a shared one."""
    sizes = {**MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    return tiny.causal_lm(Glm4MoeConfig(**sizes))


def qwen3_moe() -> Any:
    return tiny.causal_lm(Qwen3MoeConfig(**MOE, num_experts=4, mlp_only_layers=[0]))


def mamba() -> Any:
    return tiny.causal_lm(MambaConfig(**tiny.SIZES, state_size=4))


def trained(model: Any, rng: torch.Generator, *targets: str) -> Any:
    wrap(model, config(*targets))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12).view(2, 6)).logits


def files(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


@pytest.mark.parametrize(
    ("make", "targets", "message"),
    [
        (
            glm4_moe,
            ["gate_proj", "up_proj", "down_proj", "q_proj"],
            r"Glm4MoeForCausalLM: model.layers.0.mlp.gate_proj would get no adapter \(and 5 more\); "
            "leave out down_proj, gate_proj, up_proj$",
        ),
        (glm4_moe, ["gate_proj"], "Cannot convert PEFT target.* gate_proj without also targeting up_proj"),
        (
            glm4_moe,
            ["layers.0.mlp.down_proj"],
            "model.layers.0.mlp.down_proj would get no adapter; leave out",
        ),
        (glm4_moe, r".*\.(q|down)_proj", r"would get no adapter \(and 1 more\); leave out down_proj$"),
        (glm4_moe, "all-linear", r"leave out down_proj, gate_proj, up_proj$"),
        (qwen3_moe, ["gate_proj", "up_proj", "down_proj"], "Qwen3MoeForCausalLM: model.layers.0.mlp"),
        (mamba, ["out_proj"], "Module 'out_proj' is incompatible"),
    ],
)
def test_linears_that_peft_would_not_adapt(make: Any, targets: Any, message: str) -> None:
    model = make()
    types = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=f"LoraConfig: PEFT .* would not load this adapter into .*{message}"):
        wrap(model, LoraConfig(r=3, target_modules=targets))
    assert not is_wrapped(model)
    assert {name: type(module) for name, module in model.named_modules()} == types


@pytest.mark.parametrize("make", [glm4_moe, qwen3_moe])
def test_the_attention_of_such_a_model(make: Any, tmp_path: Path, rng: torch.Generator) -> None:
    model = trained(make(), rng, "q_proj", "o_proj")
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(make(), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-4)


def test_an_adapter_of_such_a_model_is_loaded_with_a_warning(tmp_path: Path, rng: torch.Generator) -> None:
    model = trained(glm4_moe(), rng, "q_proj")
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (factor,) = [tensor for key, tensor in tensors.items() if "layers.0" in key and "lora_A" in key]
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    mlp = {name.format("A"): factor, name.format("B"): torch.ones(48, 3)}
    save_file(mlp, tmp_path / "adapter_model.safetensors")
    written = (tmp_path / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(written.replace("q_proj", "layers.0.mlp.up_proj"))
    with pytest.warns(
        UserWarning, match="is loaded, but cannot be saved again: .*would not load this adapter"
    ):
        loaded = load_adapter(glm4_moe(), tmp_path)
    assert float(adapter_layers(loaded)["model.layers.0.mlp.up_proj"].lora_b.sum()) == 48 * 3
    with pytest.raises(ValueError, match="would not load this adapter"):
        save_adapter(loaded, tmp_path / "again")
    with pytest.raises(ValueError, match="would not load this adapter"):
        save_device_adapter(loaded, tmp_path / "again.safetensors")
    assert files(tmp_path) == FILES


def test_the_check_changes_nothing(rng: torch.Generator) -> None:
    model = trained(tiny.llama(tie_word_embeddings=True), rng, "q_proj", "lm_head")
    model.config.pretraining_tp = 4  # PEFT sets it to 1 in the models that it wraps
    model.enable_input_require_grads = lambda: pytest.fail("the model itself was given to PEFT")
    modules, state, random = list(model.modules()), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    hooks = [len(module._forward_hooks) for module in modules]
    peft_save.check_saves(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module is before for module, before in zip(model.modules(), modules, strict=True))
    assert [len(module._forward_hooks) for module in modules] == hooks
    assert model.config.pretraining_tp == 4 and not hasattr(model, "peft_config")
    for name, value in model.state_dict().items():
        assert_same_bits(value, state[name])


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("scaling", 3.0, "would get rank 3 and scaling 2 in place of rank 3 and scaling 3"),
        ("rank", 2, "lora_A.default.weight: copying a param with shape"),
    ],
)
def test_layers_that_are_not_as_their_configuration(
    attribute: str, value: float, message: str, tmp_path: Path, rng: torch.Generator
) -> None:
    model = trained(tiny.llama(), rng)
    setattr(adapter_layers(model)["model.layers.1.self_attn.q_proj"], attribute, value)
    with pytest.raises(ValueError, match=f"model.layers.1.self_attn.q_proj.*{message}"):
        save_adapter(model, tmp_path / "adapter")
    assert files(tmp_path) == []


OPTIONS: dict[str, dict[str, Any]] = {
    "patterns": {
        "rank_pattern": {r"layers\.1\..*": 5, "v_proj": 2},
        "alpha_pattern": {r"^model\.layers\.0\.self_attn\.(q|k)_proj": 9, "o_proj": 2.5},
    },
    "anchors": {"rank_pattern": {"^q_proj": 5, "q_proj": 4}, "use_rslora": True},
    "layers": {"layers_to_transform": [1], "layers_pattern": ["h", "layers"], "rank_pattern": {"v_proj": 1}},
    "dots": {"target_modules": ["0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]},
    "regex": {"target_modules": r"(?i).*\.(SELF_ATTN|MLP)\.\w+_proj", "exclude_modules": r".*1\.mlp.*"},
    "head": {"target_modules": ["lm_head", "q_proj"], "fan_in_fan_out": True},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_mean_the_same_to_peft(
    options: dict[str, Any], tied: bool, tmp_path: Path, rng: torch.Generator
) -> None:
    base = tiny.llama(tie_word_embeddings=tied)
    options = {"r": 3, "target_modules": ["q_proj", "v_proj"], **options}
    model = wrap(copy.deepcopy(base), LoraConfig(**options))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-3)


def peft_models() -> dict[str, nn.Module]:
    inner: Any = tiny.llama()
    inner.add_adapter(config("v_proj"))
    prompt = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    tokens = LoraConfig(target_modules=["v_proj"], modules_to_save=["lm_head"])
    return {
        "add_adapter": inner,
        "PeftModel": peft.get_peft_model(tiny.llama(), config("v_proj")),
        "prompt": peft.get_peft_model(tiny.llama(), prompt),
        "base": peft.get_peft_model(tiny.llama(), tokens).get_base_model(),
    }


@pytest.mark.parametrize("kind", peft_models())
def test_adapters_of_peft_are_not_lost(kind: str, tmp_path: Path, rng: torch.Generator) -> None:
    save_adapter(trained(tiny.llama(), rng), tmp_path)
    model = peft_models()[kind]
    message = "holds an adapter of PEFT .*: it would not be saved, so merge or unload it first"
    own = "config must be left out for a PeftModel"  # it brings its own: tests/lora/test_peft_model.py
    with pytest.raises(ValueError, match=own if isinstance(model, PeftModel) else message):
        wrap(model, config())
    with pytest.raises(ValueError, match=message):
        load_adapter(model, tmp_path)
    assert not is_wrapped(model)


def test_an_adapter_of_peft_beside_ours(tmp_path: Path, rng: torch.Generator) -> None:
    model = trained(tiny.llama(), rng)
    peft.inject_adapter_in_model(config("o_proj"), model)
    with pytest.raises(ValueError, match="holds an adapter of PEFT .model.layers.0.self_attn.o_proj"):
        save_adapter(model, tmp_path / "adapter")
    assert files(tmp_path) == []


def test_resized_embeddings(tmp_path: Path, rng: torch.Generator) -> None:
    tiny.llama().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wrap(model, config())
    model.resize_token_embeddings(64)
    with pytest.raises(ValueError, match="has 64 token embeddings and had 61 when it was wrapped"):
        save_adapter(model, tmp_path / "adapter")
    unwrap(model)
    with pytest.raises(
        ValueError, match="has 64 token embeddings and had 61 when it was loaded from '.*/base'"
    ):
        wrap(model, config())
    model.save_pretrained(tmp_path / "resized")
    model = trained(AutoModelForCausalLM.from_pretrained(tmp_path / "resized"), rng)
    save_adapter(model, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "resized")
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-4)


def saved_by_trainer(model: PreTrainedModel, directory: Path) -> None:
    arguments = TrainingArguments(output_dir=str(directory), report_to=[], use_cpu=True)
    Trainer(model=model, args=arguments).save_model(str(directory))


SAVERS: dict[str, Any] = {
    "model": lambda model, directory: model.save_pretrained(directory),
    "state": lambda model, directory: model.save_pretrained(directory, state_dict=model.state_dict()),
    "trainer": saved_by_trainer,
    "copy": lambda model, directory: copy.deepcopy(model).save_pretrained(directory),
    "pickle": lambda model, directory: pickle.loads(pickle.dumps(model)).save_pretrained(directory),
    "compiled": lambda model, directory: torch.compile(model, backend="eager").save_pretrained(directory),
}


@pytest.mark.parametrize("save", SAVERS.values(), ids=SAVERS)
def test_save_pretrained_writes_the_adapter(save: Any, tmp_path: Path, rng: torch.Generator) -> None:
    model = trained(tiny.llama(), rng)
    save(model, tmp_path)
    assert [file for file in files(tmp_path) if file != "training_args.bin"] == FILES
    assert_same_bits(logits(load_adapter(tiny.llama(), tmp_path)), logits(model))


def test_save_pretrained_of_a_copy_writes_that_of_the_copy(tmp_path: Path, rng: torch.Generator) -> None:
    other = copy.deepcopy(trained(tiny.llama(), rng))
    for layer in adapter_layers(other).values():
        layer.lora_b.data.fill_(0.5)
    other.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all(bool((tensor == 0.5).all()) for key, tensor in tensors.items() if "lora_B" in key)


def test_what_save_pretrained_cannot_do(tmp_path: Path, rng: torch.Generator) -> None:
    model = trained(tiny.llama(), rng)
    with pytest.raises(
        ValueError, match="LlamaModel is part of a wrapped model: save the adapter of the whole"
    ):
        model.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs push_to_hub=False: use push_to_hub\(\)"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    state = {key: 2 * value for key, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match="state_dict must hold the adapter of the model, got another model.layers.0"
    ):
        model.save_pretrained(tmp_path, state_dict=state)
    model.save_pretrained(tmp_path, is_main_process=False)
    assert files(tmp_path) == []
    unwrap(model)
    model.save_pretrained(tmp_path)
    assert_same_bits(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_the_configuration_of_a_device_adapter(tmp_path: Path, rng: torch.Generator) -> None:
    model = trained(tiny.llama(), rng)
    save_device_adapter(model, tmp_path / "adapter.safetensors")
    peft_from_device(tmp_path / "adapter.safetensors", tmp_path / "adapter")
    loaded = load_adapter(tiny.llama(), tmp_path / "adapter")
    assert adapter_config(loaded)["target_modules"] == ["q_proj"]
    assert_same_bits(logits(loaded), logits(model))
