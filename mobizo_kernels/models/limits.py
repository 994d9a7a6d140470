"""What a model has room for: the tokens of its embedding and the positions it was made for."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from mobizo_kernels.errors import InputError


def positions(config: PretrainedConfig) -> int | None:
    """The most tokens of a row; None if nothing bounds them, as with a stretched rotary embedding."""
    text = config.get_text_config()
    rotary = getattr(text, "rope_parameters", None) or {}
    parts = [
        rotary,
        *(part for part in rotary.values() if isinstance(part, dict)),
    ]  # one for each kind of layer
    if any(part.get("rope_type", "default") != "default" for part in parts):
        return None
    return getattr(text, "max_position_embeddings", None)


def check_max_length(config: PretrainedConfig, max_length: int) -> None:
    """Raise InputError if rows of `max_length` tokens are longer than the model can read."""
    most = positions(config)
    if most is not None and max_length > most:
        raise InputError(f"max_length: expected at most {most}, the positions of the model, got {max_length}")


def check_rows(config: PretrainedConfig, rows: Sequence[Sequence[int]]) -> None:
    """Raise InputError if one of the `rows` of token ids has a token beyond the model's embedding, or more
    tokens than the model can read.
    """
    most = positions(config)
    longest = max(map(len, rows), default=0)
    if most is not None and longest > most:
        raise InputError(
            f"max_length: expected at most {most}, the positions of the model, got a row of {longest} tokens"
        )
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    largest = max(map(max, rows), default=0)
    if vocabulary is not None and largest >= vocabulary:
        raise InputError(
            f"model: its tokenizer gives the token {largest}, and its embedding has {vocabulary} rows"
        )


def check_pad_token(spec: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError if the pad token of `tokenizer` is beyond the embedding of the model `spec`."""
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    pad = tokenizer.pad_token_id
    if vocabulary is not None and not 0 <= pad < vocabulary:
        raise InputError(
            f"model {spec!r}: its pad token {tokenizer.pad_token!r} is the token {pad}, and its embedding "
            f"has {vocabulary} rows"
        )
