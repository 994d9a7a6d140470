"""Tiny decoders of twelve kinds and what their programs are compared with.

Run as a command it writes the table of docs/executorch.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import tiny
import torch
import transformers
from executorch.exir._serialize._program import deserialize_pte_binary
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
from mobizo_kernels.executorch import Description, Trainer
from mobizo_kernels.executorch.experts import replace_experts
from mobizo_kernels.executorch.quantization import quantize
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models.quantization import QUANTIZATIONS
from mobizo_kernels.optim.seeds import query_seeds
from mobizo_kernels.zo import make_estimator

SIZES = {**tiny.SIZES, "num_hidden_layers": 1}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OPTIONS: dict[str, Any] = {
    "queries": 2,
    "batch_size": 3,
    "max_length": 12,
    "dynamic_length": False,
    "candidate_tokens": CANDIDATES,
}
# Where activations are rounded to 8 bits, a change in the last bit can move one to its neighbour.
TOLERANCE = {"none": 1e-5, "int8": 1e-4, "int8-dynamic": 3e-2, "int4": 3e-2}


class Case(NamedTuple):
    """A kind of decoder.

    Attributes:
        special: what sets it apart, in a few words.
        config: of the tiny model.
        targets: linears to adapt.
        options: of the export, if they are not `OPTIONS`.
    """

    special: str
    config: transformers.PretrainedConfig
    targets: list[str]
    options: dict[str, Any] = {}


CASES = {
    "Llama": Case(
        "tied head, dynamic RoPE",
        transformers.LlamaConfig(
            **GROUPED,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        ),
        ["q_proj", "v_proj"],
        {"candidate_tokens": None},
    ),
    "Mistral": Case(
        "sliding window",
        transformers.MistralConfig(**GROUPED, sliding_window=12),
        ["v_proj", "down_proj"],
    ),
    "Qwen2": Case(
        "biases in attention, tied head",
        transformers.Qwen2Config(**GROUPED, tie_word_embeddings=True),
        ["q_proj", "v_proj"],
        {"candidate_tokens": None},
    ),
    "Qwen3": Case(
        "norms of queries and keys, `head_dim`",
        transformers.Qwen3Config(**GROUPED, head_dim=16),
        ["q_proj", "o_proj"],
    ),
    "Gemma 2": Case(
        "soft caps of scores and logits",
        transformers.Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=8),
        ["q_proj", "v_proj"],
    ),
    "Gemma 3": Case(
        "scaled embedding, two RoPEs",
        transformers.Gemma3TextConfig(
            **GROUPED,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=8,
            layer_types=["full_attention"],
        ),
        ["q_proj", "gate_proj"],
    ),
    "Phi-3": Case(
        "fused projections, partial RoPE, LongRoPE",
        transformers.Phi3Config(
            **GROUPED,
            original_max_position_embeddings=32,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "original_max_position_embeddings": 32,
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 3.0],
            },
        ),
        ["qkv_proj", "gate_up_proj"],
    ),
    "OPT": Case(
        "learned positions, biases everywhere",
        transformers.OPTConfig(
            **{k: v for k, v in SIZES.items() if k != "intermediate_size"}, ffn_dim=48, word_embed_proj_dim=32
        ),
        ["k_proj", "fc1"],
        {"estimator": "one_sided", "targets_per_row": 3, "candidate_tokens": None},
    ),
    "GPT-2": Case(
        "`Conv1D`, learned positions",
        transformers.GPT2Config(
            vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=1,
            eos_token_id=2, pad_token_id=0,
        ),
        ["c_attn", "c_fc"],
    ),
    "GPT-NeoX": Case(
        "parallel residual, partial RoPE",
        transformers.GPTNeoXConfig(**SIZES),
        ["query_key_value", "dense_4h_to_h"],
        {"distribution": "rademacher"},
    ),
    "Granite": Case(
        "factors on embedding, residuals, scores and logits",
        transformers.GraniteConfig(
            **GROUPED,
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            attention_multiplier=0.2,
            logits_scaling=4.0,
        ),
        ["q_proj", "lm_head"],
        {"candidate_tokens": None},
    ),
    "Qwen2-MoE": Case(
        "mixture of experts, biases in attention",
        transformers.Qwen2MoeConfig(
            **GROUPED,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=48,
        ),
        ["q_proj", "v_proj"],
    ),
}  # fmt: skip
RECURRENT = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
REFUSED = {
    "Mamba": Case("state space", transformers.MambaConfig(**RECURRENT, state_size=4), ["in_proj"]),
    "RWKV": Case("linear attention", transformers.RwkvConfig(**RECURRENT, attention_hidden_size=32), ["key"]),
}


class Eager:
    """A wrapped model that has been trained before, and its losses with the weights of the program."""

    def __init__(self, case: Case, quantization: str, rng: torch.Generator) -> None:
        options = {**OPTIONS, **case.options}
        self.model = tiny.causal_lm(case.config)
        mobizo.wrap(self.model, peft.LoraConfig(r=5, lora_alpha=10, target_modules=case.targets))
        for layer in adapter_layers(self.model).values():
            layer.lora_b.data.normal_(std=0.05, generator=rng)
        self.candidates = options["candidate_tokens"]
        self.quantization = quantization
        self.distribution = options.get("distribution", "gaussian")

    def round_weights(self) -> None:
        """Round the weights of the eager model as the program's are."""
        self.loss = LabelledLoss(self.model, candidate_tokens=self.candidates)
        if self.quantization != "none":
            replace_experts(self.model)
        quantize(self.model, self.quantization, head=self.candidates is None)

    def losses(self, rows: list[EncodedExample], seeds: torch.Tensor, coeffs: torch.Tensor) -> torch.Tensor:
        with adapter_of(self.model).directions.use(seeds, coeffs, self.distribution):
            return self.loss(collate(rows, 0), len(seeds))

    def update(self, seeds: torch.Tensor, coeffs: torch.Tensor) -> None:
        for layer in adapter_layers(self.model).values():
            mobizo.ops.perturb_(layer.lora_b, seeds, coeffs, layer.stream, 1.0, self.distribution)

    def logits(self, row: EncodedExample) -> torch.Tensor:
        return self.loss.logits(collate([row], 0))


def random_rows(count: int, description: Description, rng: torch.Generator) -> list[EncodedExample]:
    """Rows of 5 to 13 tokens with 1 to K answers."""
    most, candidates = description.targets_per_row, description.candidate_tokens is not None
    rows = []
    for length in torch.randint(5, 14, (count,), generator=rng).tolist():
        targets = int(torch.randint(1, most + 1, (1,), generator=rng))
        rows += tiny_rows(rng, [length], targets=targets, candidates=candidates)
    return rows


class Compared(NamedTuple):
    """A program and its eager model, side by side.

    Attributes:
        losses: of both in each step, float32 [steps, G].
        logits: of both for some rows.
        delegates: of `train_step`.
    """

    losses: tuple[np.ndarray, np.ndarray]
    logits: tuple[np.ndarray, np.ndarray]
    delegates: int


def compare(case: Case, quantization: str, path: Path, rng: torch.Generator) -> Compared:
    """Export a tiny model to `path`, train it and its eager model for four steps, evaluate both.

    Raises AssertionError if the export changes the model, or if the adapters do not have the same bits.
    """
    eager = Eager(case, quantization, rng)
    before = {name: value.clone() for name, value in eager.model.state_dict().items()}
    options = {**OPTIONS, **case.options, "quantization": quantization}
    description = export_quietly(eager.model, path, **options)
    for key, value in eager.model.state_dict().items():
        assert torch.equal(value, before[key])
    eager.round_weights()
    trainer = Trainer(path)
    assert_same_adapter(trainer, eager.model)
    estimator = make_estimator(description.estimator, queries=2, eps=1e-2)
    pending = no_update(description)
    losses = []
    for step in range(4):
        rows, seeds = random_rows(3, description, rng), query_seeds(1, step, 2)
        groups = estimator.seeds(seeds), estimator.coeffs()
        batch: Batch = program_batch(rows, description)
        got, _ = trainer.train_step(*batch, *(values.numpy() for values in groups), *pending)
        losses.append((got, eager.losses(rows, *groups).numpy()))
        coeffs = 0.02 * torch.randn(2, generator=rng)
        eager.update(seeds, coeffs)
        pending = seeds.numpy(), coeffs.numpy()
    trainer.update(*pending)
    assert_same_adapter(trainer, eager.model)
    rows = random_rows(description.evaluation_rows, description, rng)
    logits = trainer.evaluate_batch(*program_batch(rows, description)[:3])
    mine = [values[: row.targets] for row, values in zip(rows, logits, strict=True)]
    theirs = [eager.logits(row).numpy() for row in rows]
    return Compared(_both(losses), (np.concatenate(mine), np.concatenate(theirs)), delegates(path))


def _both(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([mine for mine, _ in pairs]), np.stack([theirs for _, theirs in pairs])


def delegates(path: Path) -> int:
    """How many parts of `train_step` are XNNPACK's."""
    plans = deserialize_pte_binary(path.read_bytes()).program.execution_plan
    return next(len(plan.delegates) for plan in plans if plan.name == "train_step")


def table(names: list[str]) -> Iterator[str]:
    """The lines of the table for these cases, or for all."""
    yield "| model | with | " + " | ".join(f"`{kind}`" for kind in QUANTIZATIONS) + " |"
    yield "|---" * (2 + len(QUANTIZATIONS)) + "|"
    cases = {**CASES, **REFUSED}
    for name in names or cases:
        cells = [cases[name].special, *(_cell(cases[name], kind) for kind in QUANTIZATIONS)]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _cell(case: Case, quantization: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        rng = torch.Generator().manual_seed(0)
        try:
            compared = compare(case, quantization, Path(folder) / "model.pte", rng)
        except ValueError:
            return "refused"
    mine, theirs = compared.losses
    return f"{np.abs(mine - theirs).max():.0e}, {compared.delegates}"


if __name__ == "__main__":
    for line in table(sys.argv[1:]):
        print(line, flush=True)
