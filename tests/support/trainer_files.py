"""A program that trains and writes, rows for it, and its tokenizer: for native tests.

python tests/support/trainer_files.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiny
import torch
from programs import DEFAULTS, export_quietly, lora_config, tiny_dataset
from tiny_texts import tokenizer
from transformers import LlamaConfig

CONTEXT = 48


def llama() -> Any:
    """A tiny one that has the tokens of `tokenizer()`."""
    return tiny.causal_lm(
        LlamaConfig(**{**tiny.SIZES, "vocab_size": len(tokenizer())}, num_key_value_heads=2)
    )


def make_files(folder: Path) -> tuple[Path, Path]:
    """The program, of four queries, and the data set."""
    program, dataset = folder / "llama.pte", folder / "data.safetensors"
    options = {**DEFAULTS, "queries": 4, "context": CONTEXT}
    export_quietly(llama(), program, targets=lora_config(), **options)
    return program, tiny_dataset(dataset, torch.Generator().manual_seed(0))


if __name__ == "__main__":
    chosen = Path(sys.argv[1])
    make_files(chosen)
    tokenizer().backend_tokenizer.save(str(chosen / "tokenizer.json"))
