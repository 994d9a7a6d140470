"""Both factors of PEFT's LoRA in one batched forward, against each group's model in float64."""

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

import mobizo_kernels as mobizo
from mobizo_kernels import reference
from mobizo_kernels.journal import replay
from mobizo_kernels.lora import bare, is_wrapped
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.optim import query_seeds
from mobizo_kernels.parameters import has_wrapped_parameters
from mobizo_kernels.zo import tuned_parameters

OPTIONS: dict[str, Any] = {"queries": 2, "eps": 1e-2, "lr": 1e-2, "run_seed": 5, "distribution": "outer"}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 7},
    "all-linear": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
}


def made(rng: torch.Generator, name: str = "default", **options: Any) -> PeftModel:
    config = LoraConfig(**{"r": 3, "target_modules": ["q_proj", "v_proj"], **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny.llama(), config, adapter_name=name).eval()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(generator=rng)
    return model


def tuned(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in tuned_parameters(bare(model))}


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert_same_bits(value, right[name])


def loss_in_float64(model: PeftModel, batch: dict[str, torch.Tensor], seed: int, coeff: float) -> float:
    """Of the model whose every tuned parameter w is w + coeff * z(seed)."""
    moved = copy.deepcopy(model).double()
    for name, parameter in tuned_parameters(bare(moved)):
        start = parameter.detach().float()
        z = reference.noise(tuple(start.shape), seed, parameter_stream(name), "outer")
        parameter.data = start.double() + coeff * torch.from_numpy(z).double()
    return tiny.cross_entropy(*tiny.row_logits(moved, batch))


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_a_step(options: dict[str, Any], rng: torch.Generator) -> None:
    model, batch = made(rng, **options), tiny.batch(rng)
    start, before = copy.deepcopy(model), tuned(model)
    assert sum(".lora_A." in name for name in before) == sum(
        ".lora_B." in n for n in before if "bias" not in n
    )
    assert mobizo.wrap_parameters(model) is model and has_wrapped_parameters(model)
    zo = mobizo.ZerothOrder(model, **OPTIONS)
    assert zo.model is bare(model) and not is_wrapped(model)
    forwards: list[int] = []
    bare(model).base_model.register_forward_hook(lambda *args: forwards.append(len(args[2][0])))
    out = zo.step(batch)
    assert forwards == [3 * 4]
    seeds = query_seeds(5, 0, 2)
    expected = [loss_in_float64(start, batch, int(seed), sign * 1e-2) for sign in (1, -1) for seed in seeds]
    torch.testing.assert_close(out.losses.double(), torch.tensor(expected).double(), rtol=1e-5, atol=0)
    assert float(out.losses.max() - out.losses.min()) > 1e-2
    coeffs = (-1e-2 / 2 * out.projected_grads.double()).float()
    for name, value in before.items():
        before[name] = reference.perturb(value, seeds, coeffs, parameter_stream(name), 1.0, "outer")
    assert_same(tuned(model), before)
    frozen = start.state_dict()
    for name, value in model.state_dict().items():
        if not any(name.endswith(one) for one in before):
            assert_same_bits(value, frozen[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_are_float32_over_a_half_precision_base(dtype: torch.dtype, rng: torch.Generator) -> None:
    base = tiny.llama(dtype=dtype)
    model = peft.get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj", "v_proj"])).eval()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            parameter.data.normal_(generator=rng)
    before = tuned(model)
    assert {value.dtype for value in before.values()} == {torch.float32}
    out = mobizo.ZerothOrder(mobizo.wrap_parameters(model), **OPTIONS).step(tiny.batch(rng))
    assert out.losses.isfinite().all() and float(out.losses.max() - out.losses.min()) > 1e-3
    assert all(not torch.equal(value, before[name]) for name, value in tuned(model).items())


def test_journal_replay_and_files(tmp_path: Path, rng: torch.Generator) -> None:
    start = made(rng, name="mine", task_type="CAUSAL_LM")
    model, path = mobizo.wrap_parameters(copy.deepcopy(start)), tmp_path / "run.journal"
    options = {**OPTIONS, "momentum": 0.9}
    zo = mobizo.ZerothOrder(model, **options, journal=path)
    for _ in range(3):
        zo.step(tiny.batch(rng))
    assert zo.journal is not None
    zo.journal.close()
    for wrapped in (False, True):
        again = copy.deepcopy(start)
        assert replay(mobizo.wrap_parameters(again) if wrapped else again, path) == 3
        assert_same(tuned(again), tuned(model))
    resumed = mobizo.wrap_parameters(copy.deepcopy(start))
    assert mobizo.ZerothOrder(resumed, **options, journal=path, resume=True).steps == 3
    assert_same(tuned(resumed), tuned(model))

    model.save_pretrained(str(tmp_path / "saved"))
    theirs = PeftModel.from_pretrained(tiny.llama(), str(tmp_path / "saved" / "mine"))
    ours = mobizo.load_adapter(tiny.llama(), tmp_path / "saved" / "mine")
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        expected = mobizo.unwrap_parameters(model)(ids).logits
        torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(ours(ids).logits, expected, rtol=1e-5, atol=1e-4)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-5, atol=1e-3)


def test_several_active_adapters_are_tuned_together(rng: torch.Generator) -> None:
    model = made(rng, name="first")
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.add_adapter("third", LoraConfig(r=2, target_modules=["k_proj"]))
    model.base_model.set_adapter(["first", "second"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mobizo.ZerothOrder(mobizo.wrap_parameters(model), **OPTIONS).step(tiny.batch(rng))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != (".first." in name or ".second." in name), name


def test_refusals(rng: torch.Generator) -> None:
    def refused(model: PeftModel, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            mobizo.wrap_parameters(model)
        assert not has_wrapped_parameters(model)

    refused(
        made(rng, "mine", use_dora=True), "'mine' must be a plain LoRA .* got DoraLinearVariant at .*q_proj"
    )
    refused(made(rng, alora_invocation_tokens=[5]), "must be a plain LoRA .* got ALoraLinearVariant")
    refused(made(rng, trainable_token_indices=[3]), "trainable_tokens_delta.default: no batched forward")
    refused(made(rng, target_modules=["embed_tokens"]), "lora_embedding_A.default: no batched forward")
    merged = made(rng)
    merged.merge_adapter()
    refused(merged, r"'default' is merged into .*; call unmerge_adapter\(\) first")
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    refused(peft.get_peft_model(tiny.llama(), prompt), "nothing to tune")
    wrapped = mobizo.wrap_parameters(made(rng))
    with pytest.raises(ValueError, match=r"wrapped already; call unwrap_parameters\(model\) first"):
        mobizo.wrap(wrapped)
