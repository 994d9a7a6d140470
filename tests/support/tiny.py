"""Tiny causal LMs with random weights, and batches for them.

Models are typed Any: transformers' submodules and outputs have no types of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

VOCABULARY = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def causal_lm(config: PretrainedConfig) -> Any:
    """A model in eval mode whose logits are far from uniform; the same weights on every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5.0)
    return model


def llama(**options: Any) -> Any:
    """Two layers of width 32 with grouped-query attention, float32."""
    return causal_lm(LlamaConfig(**SIZES, num_key_value_heads=2, **options))


def batch(
    rng: torch.Generator, lengths: Sequence[int] = (7, 5, 9), *, labelled: int = 2, side: str = "left"
) -> dict[str, torch.Tensor]:
    """Random tokens padded to the longest row, the last `labelled` tokens of each row being labels."""
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for length in lengths:
        tokens = torch.randint(3, VOCABULARY, (length,), generator=rng).tolist()
        padding = max(lengths) - length
        ignored = [-100] * (length - labelled)
        columns = {
            "input_ids": (tokens, [0] * padding),
            "attention_mask": ([1] * length, [0] * padding),
            "labels": (ignored + tokens[length - labelled :], [-100] * padding),
        }
        for name, (values, pad) in columns.items():
            rows[name].append(pad + values if side == "left" else values + pad)
    return {name: torch.tensor(values) for name, values in rows.items()}


def row_logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own logits, float64, and the labels, where each row without padding is labelled."""
    logits, targets = [], []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        real = mask.bool()
        with torch.no_grad():
            row = model(input_ids=ids[real][None], use_cache=False).logits[0, :-1].double()
        wanted = labels[real][1:] != -100
        logits.append(row[wanted])
        targets.append(labels[real][1:][wanted])
    return torch.cat(logits), torch.cat(targets)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return float(-logits.log_softmax(-1)[torch.arange(len(targets)), targets].mean())
