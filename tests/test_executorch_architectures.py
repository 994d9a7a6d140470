"""Decoders of several kinds, estimators and weights: each program gives the losses of its eager model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from programs import (
    CANDIDATES,
    Batch,
    assert_same_adapter,
    export_quietly,
    no_update,
    program_batch,
    tiny_rows,
)

import mobizo_kernels as mobizo
from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.executorch import Trainer
from mobizo_kernels.executorch.quantization import quantize
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.zo import LabelledLoss, make_estimator
from mobizo_kernels.zo.seeds import query_seeds

SIZES = {**tiny.SIZES, "num_hidden_layers": 1}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OPTIONS: dict[str, Any] = {
    "queries": 2,
    "batch_size": 3,
    "max_length": 12,
    "dynamic_length": False,
    "candidate_tokens": CANDIDATES,
}


class Case(NamedTuple):
    """A model, the linears to adapt, options of the export, and the rounding that the weights bring."""

    config: transformers.PretrainedConfig
    targets: list[str]
    options: dict[str, Any]
    tolerance: float = 1e-5


CASES = {
    "qwen3-int8": Case(
        transformers.Qwen3Config(**GROUPED, head_dim=16),
        ["q_proj", "o_proj"],
        {"quantization": "int8"},
        tolerance=1e-4,
    ),
    "mistral-int4": Case(
        transformers.MistralConfig(**GROUPED, sliding_window=12),
        ["v_proj", "down_proj"],
        {"quantization": "int4"},
        tolerance=3e-2,
    ),
    "gemma2": Case(
        transformers.Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=8), ["q_proj", "v_proj"], {}
    ),
    "gpt-neox-rademacher": Case(
        transformers.GPTNeoXConfig(**SIZES),
        ["query_key_value", "dense_4h_to_h"],
        {"distribution": "rademacher"},
    ),
    "opt-one-sided-vocabulary": Case(
        transformers.OPTConfig(
            **{k: v for k, v in SIZES.items() if k != "intermediate_size"}, ffn_dim=48, word_embed_proj_dim=32
        ),
        ["k_proj", "fc1"],
        {"estimator": "one_sided", "targets_per_row": 3, "candidate_tokens": None},
    ),
}


class Eager:
    """A wrapped model that has been trained before, and its losses with the weights of the program."""

    def __init__(self, case: Case, rng: torch.Generator) -> None:
        options = {**OPTIONS, **case.options}
        self.model = tiny.causal_lm(case.config)
        mobizo.wrap(self.model, peft.LoraConfig(r=5, lora_alpha=10, target_modules=case.targets))
        for layer in adapter_layers(self.model).values():
            layer.lora_b.data.normal_(std=0.05, generator=rng)
        self.candidates = options["candidate_tokens"]
        self.quantization = options.get("quantization", "none")
        self.distribution = options.get("distribution", "gaussian")

    def round_weights(self) -> None:
        """As the program's are."""
        self.loss = LabelledLoss(self.model, candidate_tokens=self.candidates)
        quantize(self.model, self.quantization, head=self.candidates is None)

    def losses(self, rows: list[EncodedExample], seeds: torch.Tensor, coeffs: torch.Tensor) -> torch.Tensor:
        with adapter_of(self.model).directions.use(seeds, coeffs, self.distribution):
            return self.loss(collate(rows, 0), len(seeds))

    def update(self, seeds: torch.Tensor, coeffs: torch.Tensor) -> None:
        for layer in adapter_layers(self.model).values():
            mobizo.ops.perturb_(layer.lora_b, seeds, coeffs, layer.stream, 1.0, self.distribution)

    def logits(self, row: EncodedExample) -> torch.Tensor:
        return self.loss.logits(collate([row], 0))


def random_rows(count: int, description: dict[str, Any], rng: torch.Generator) -> list[EncodedExample]:
    """Rows of 5 to 13 tokens with 1 to K answers."""
    most, candidates = description["targets_per_row"], description["candidate_tokens"] is not None
    rows = []
    for length in torch.randint(5, 14, (count,), generator=rng).tolist():
        targets = int(torch.randint(1, most + 1, (1,), generator=rng))
        rows += tiny_rows(rng, [length], targets=targets, candidates=candidates)
    return rows


@pytest.mark.parametrize("name", CASES)
def test_program_is_the_eager_model(name: str, tmp_path: Path, rng: torch.Generator) -> None:
    case, path = CASES[name], tmp_path / "model.pte"
    eager = Eager(case, rng)
    before = {name: value.clone() for name, value in eager.model.state_dict().items()}
    description = export_quietly(eager.model, path, **{**OPTIONS, **case.options})
    for key, value in eager.model.state_dict().items():
        assert torch.equal(value, before[key])
    eager.round_weights()
    trainer = Trainer(path)
    assert_same_adapter(trainer, eager.model)
    tolerance = {"rtol": case.tolerance, "atol": case.tolerance}
    estimator = make_estimator(description["estimator"], queries=2, eps=1e-2)
    pending = no_update(description)
    for step in range(4):
        rows, seeds = random_rows(3, description, rng), query_seeds(1, step, 2)
        groups = estimator.seeds(seeds), estimator.coeffs()
        batch: Batch = program_batch(rows, description)
        losses, _ = trainer.train_step(*batch, *(values.numpy() for values in groups), *pending)
        np.testing.assert_allclose(losses, eager.losses(rows, *groups), **tolerance)
        coeffs = 0.02 * torch.randn(2, generator=rng)
        eager.update(seeds, coeffs)
        pending = seeds.numpy(), coeffs.numpy()
    trainer.update(*pending)
    assert_same_adapter(trainer, eager.model)
    rows = random_rows(description["evaluation_rows"], description, rng)
    logits = trainer.evaluate_batch(*program_batch(rows, description)[:3])
    for row, got in zip(rows, logits, strict=True):
        np.testing.assert_allclose(got[: row.targets], eager.logits(row), rtol=1e-4, atol=30 * case.tolerance)


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
