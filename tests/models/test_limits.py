"""What a model has room for: positions and tokens, by its configuration."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import SIZES
from transformers import BloomConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, MambaConfig, PretrainedConfig

from mobizo_kernels.errors import InputError
from mobizo_kernels.models import check_max_length, check_rows
from mobizo_kernels.models.limits import positions

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPT2Config(n_positions=24), 24),
        (LlamaConfig(**SIZES), 64),
        (LlamaConfig(**SIZES, rope_parameters=YARN), None),
        (Gemma3TextConfig(max_position_embeddings=96), 96),  # a rotary embedding for each kind of layer
        (BloomConfig(), None),
        (MambaConfig(), None),
    ],
    ids=["table", "rotary", "stretched", "kinds", "alibi", "recurrent"],
)
def test_positions(config: PretrainedConfig, expected: int | None) -> None:
    assert positions(config) == expected


def row(length: int, token: int = 1) -> list[int]:
    return [*[1] * (length - 1), token]


def test_longest_row() -> None:
    config = GPT2Config(n_positions=24, vocab_size=50)
    check_rows(config, [])
    check_rows(config, [row(5), row(24)])
    with pytest.raises(InputError, match="max_length: expected at most 24, .* got a row of 25 tokens"):
        check_rows(config, [row(5), row(25), row(3)])
    check_max_length(config, 24)
    with pytest.raises(InputError, match="max_length: expected at most 24, .* got 25"):
        check_max_length(config, 25)


def test_largest_token() -> None:
    config = LlamaConfig(**SIZES)
    check_rows(config, [row(5, SIZES["vocab_size"] - 1)])
    with pytest.raises(InputError, match="model: its tokenizer gives the token 61, .* 61 rows"):
        check_rows(config, [row(5), row(3, SIZES["vocab_size"])])
