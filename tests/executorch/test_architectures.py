"""Decoders of several kinds, estimators and weights: each program gives the losses of its eager model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from architectures import CASES, GROUPED, OPTIONS, REFUSED, SIZES, TOLERANCE, compare
from programs import CANDIDATES, export_quietly, program_batch, tiny_rows

import mobizo_kernels as mobizo
from mobizo_kernels.data import collate
from mobizo_kernels.executorch import Description, export
from mobizo_kernels.executorch.training_methods import TrainStep
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models.quantization import QUANTIZATIONS

# All kinds of weights, and what only a whole program shows; the others are slow tests.
USUAL = {
    ("Qwen2", "int8"), ("Qwen2", "int8-dynamic"), ("Mistral", "int4"), ("Gemma 2", "none"), ("OPT", "none"),
    ("GPT-NeoX", "none"), ("Granite", "none"), ("Qwen2-MoE", "int8"),
}  # fmt: skip
MATRIX = [
    pytest.param(name, kind, marks=[] if (name, kind) in USUAL else pytest.mark.slow, id=f"{name}-{kind}")
    for name in CASES
    for kind in QUANTIZATIONS
]


@pytest.mark.parametrize(("name", "quantization"), MATRIX)
def test_program_is_the_eager_model(
    name: str, quantization: str, tmp_path: Path, rng: torch.Generator
) -> None:
    compared = compare(CASES[name], quantization, tmp_path / "model.pte", rng)
    tolerance = TOLERANCE[quantization]
    np.testing.assert_allclose(*compared.losses, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(*compared.logits, rtol=1e-4, atol=30 * tolerance)


NOT_EXPORTED: dict[str, tuple[transformers.PretrainedConfig, str]] = {
    "window": (
        transformers.MistralConfig(**GROUPED, sliding_window=7),
        "max_length must be at most .*sliding_window, 7, got 12",
    ),
    "longrope": (
        transformers.Phi3Config(
            **{**GROUPED, "max_position_embeddings": 16},
            original_max_position_embeddings=8,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 8,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
            },
        ),
        "max_length must be at most 8, got 12.*Phi3ForCausalLM.*changes with the length",
    ),
    "alibi": (transformers.BloomConfig(**SIZES), "BloomForCausalLM cannot be exported: its ALiBi attention"),
    "mamba": (
        REFUSED["Mamba"].config,
        "MambaForCausalLM cannot be exported: its layers have no softmax attention",
    ),
    "rwkv": (
        REFUSED["RWKV"].config,
        "RwkvForCausalLM cannot be exported: its layers have no softmax attention",
    ),
    "convolution": (
        transformers.Lfm2Config(**GROUPED, layer_types=["conv"]),
        "Lfm2ForCausalLM cannot be exported: layers.0.conv.conv is a convolution over the tokens",
    ),
    "sinks": (
        transformers.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
        r"GptOssForCausalLM cannot be exported: model.layers.0.self_attn .GptOssAttention.: .*s_aux",
    ),
}


@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_what_cannot_be_exported_is_refused_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, message = NOT_EXPORTED[name]
    path = tmp_path / "model.pte"
    path.write_text("what was there")
    model = tiny.causal_lm(config)
    linear = next(path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    monkeypatch.setattr(export, "trace", lambda *_: pytest.fail("it was traced"))
    with pytest.raises(ValueError, match=message) as refusal:
        export_quietly(model, path, targets=peft.LoraConfig(target_modules=[linear]), **OPTIONS)
    assert len(str(refusal.value).splitlines()) == 1
    assert path.read_text() == "what was there"


def test_a_window_that_short_rows_do_not_reach(tmp_path: Path) -> None:
    """The configuration says that no layer has one, the code of the model uses it nevertheless."""
    config = transformers.MistralConfig(**GROUPED, sliding_window=16, layer_types=["full_attention"])
    options = {**OPTIONS, "max_length": 24}
    with pytest.raises(ValueError, match="Mistral.* cannot be exported: its logits after 24 tokens are off"):
        export_quietly(tiny.causal_lm(config), tmp_path / "model.pte", targets=["q_proj"], **options)


class Asking(torch.nn.Module):
    """Asks for the value of a number that a graph does not know."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) if x.sum().item() == 0 else self.inner(x + 0)


def test_what_cannot_be_traced_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny.causal_lm(transformers.LlamaConfig(**GROUPED))
    model.model.layers[0].mlp = Asking(model.model.layers[0].mlp)
    message = r"^LlamaForCausalLM cannot be exported: model.layers.0.mlp .Asking.: .*data-dependent"
    with pytest.raises(ValueError, match=message) as refusal:
        export_quietly(model, tmp_path / "model.pte", targets=["q_proj"], **OPTIONS)
    assert len(str(refusal.value).splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_an_adapted_head_over_candidates(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph as it is: all of the head is computed, and the candidates are taken from it."""
    model = tiny.causal_lm(transformers.LlamaConfig(**GROUPED))
    mobizo.wrap(model, peft.LoraConfig(r=4, target_modules=["lm_head", "q_proj"]))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(std=0.05, generator=rng)
    groups, found = (torch.arange(4), 0.05 * torch.randn(4, generator=rng)), {}
    rows = tiny_rows(rng, [9, 5, 12])

    def stop(graph: Any, description: Description) -> None:
        batch = program_batch(rows, description)
        found["losses"] = TrainStep(graph)(*map(torch.from_numpy, batch), *groups)
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "trace", stop)
    with pytest.raises(KeyboardInterrupt):
        export_quietly(model, tmp_path / "model.pte", **OPTIONS)
    loss = LabelledLoss(model, candidate_tokens=CANDIDATES)
    with adapter_of(model).directions.use(*groups):
        torch.testing.assert_close(found["losses"], loss(collate(rows, 0), 4), rtol=1e-5, atol=1e-5)
