"""Texts in tokens, here and natively: the description of a program without an export, and the data sets."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mobizo_kernels.cli.settings import TokenizeSettings
from mobizo_kernels.data import PromptEncoder, tokenizer_definition, tokenizer_fingerprint
from mobizo_kernels.executorch._library import load_trainer
from mobizo_kernels.executorch.describe import describe_texts
from mobizo_kernels.zo import make_rule

OPTIONS = {"steps": 9, "batch_size": 4, "seed": 3, "validation_rows": 50, "eval_rows": 70}


def description_of(
    tokenizer: PreTrainedTokenizerBase,
    template: str = "",
    words: Mapping[str, str] | None = None,
    max_length: int = 64,
    targets: int = 1,
) -> str:
    """The JSON of a program for labelled texts or, without words, for conversations."""
    prompt = None if words is None else PromptEncoder(tokenizer, template, words, max_length)
    vocabulary = len(tokenizer)
    return json.dumps(
        {
            "format": 1,
            "versions": {},
            "model": dict.fromkeys(("name", "architecture", "fingerprint"), ""),
            "quantization": "none",
            "queries": 2,
            "batch_size": 4,
            "groups": 4,
            "estimator": "two_sided",
            "distribution": "gaussian",
            "optimizer": make_rule("sgd").as_json(),
            "min_length": 3,
            "max_length": max_length,
            "dynamic_length": True,
            "targets_per_row": targets,
            "invocation_tokens": None,
            "tail_length": None,
            "candidate_tokens": None if prompt is None else list(prompt.candidate_tokens),
            "vocabulary": vocabulary,
            "pad_token": 0,
            "evaluation_rows": 4,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "adapter": {
                "config": {},
                "parameters": [
                    {"name": "w", "stream": 1, "lora_a": [1, 8], "lora_b": [8, 1], "scaling": 1.0}
                ],
            },
            "texts": asdict(describe_texts(tokenizer, prompt)),
        }
    )


def save_definition(path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Its tokenizer.json."""
    path.write_text(tokenizer_definition(tokenizer), encoding="utf-8")
    return path


def native_bytes(data: Path, description: str, definition: Path, **options: Any) -> bytes:
    """The data set that the native trainer makes of a file. Raises ValueError as it does."""
    content, _ = load_trainer().tokenized(str(data), description, str(definition), **{**OPTIONS, **options})
    return bytes(content)


def python_bytes(model: Path, data: Path, out: Path, **options: Any) -> bytes:
    """The data set that `mobizo tokenize` makes of it. Raises InputError as it does."""
    from mobizo_kernels.cli.tokenize import tokenize

    tokenize(TokenizeSettings(model=str(model), data=str(data), out=out, **{**OPTIONS, **options}))
    return out.read_bytes()


def outcome(function: Any, *arguments: Any) -> tuple[str, Any]:
    """ "ok" and what it returns, or "refused" and the sentence."""
    try:
        return "ok", function(*arguments)
    except ValueError as error:
        return "refused", str(error)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Objects as lines of JSON, characters as they are."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(content.encode())
    return path


ALPHABET = "abc dé\u0301ß漢字😀👍🏽\n\t'\".,!?\u00a0\u3000\u2028 ▁Ġ<|end|>0123"


def any_text(rng: random.Random) -> str:
    words = rng.choices(["film ", "is great", "terrible", "dull.", "\n", *ALPHABET], k=rng.choice((1, 8, 60)))
    text = "".join(words)
    return text if text.strip() and not all(c.isspace() for c in text) else f"a{text}"
