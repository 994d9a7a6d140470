"""Decoders of several kinds, estimators and weights: each program gives the losses of its eager model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from architectures import CASES, GROUPED, OPTIONS, SIZES, TOLERANCE, compare
from programs import export_quietly

from mobizo_kernels.executorch.quantization import QUANTIZATIONS

# One of each kind of weights and of each form that a part of a decoder may take; the others are slow tests.
USUAL = {
    ("Qwen2", "int8"), ("Gemma 3", "int8"), ("Mistral", "int4"), ("GPT-2", "int4"), ("Gemma 2", "none"),
    ("Phi-3", "none"), ("GPT-NeoX", "none"), ("OPT", "none"), ("Qwen2-MoE", "int8"),
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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            transformers.MistralConfig(**GROUPED, sliding_window=7),
            "max_length must be at most .*sliding_window, 7",
        ),
        (transformers.BloomConfig(**SIZES), "BloomForCausalLM cannot be exported"),
    ],
    ids=["window", "bloom"],
)
def test_what_cannot_be_exported_is_refused_at_once(
    config: transformers.PretrainedConfig, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pte"
    path.write_text("what was there")
    with pytest.raises(ValueError, match=message):
        export_quietly(
            tiny.causal_lm(config), path, targets=peft.LoraConfig(target_modules="all-linear"), **OPTIONS
        )
    assert path.read_text() == "what was there"
