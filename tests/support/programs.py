"""Tiny training programs, each exported once in a run of the tests, what they are compared with, and data for
them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
from helpers import assert_same_bits
from numpy.typing import NDArray
from transformers import Gemma2Config, LlamaConfig, Qwen2Config, Qwen3Config

import mobizo_kernels as mobizo
from mobizo_kernels.data import EncodedExample, TokenizedDataset, write_dataset
from mobizo_kernels.executorch import Description, Trainer, export_training_program
from mobizo_kernels.lora import adapter_layers

Batch = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

CANDIDATES = (5, 9)
MAGIC = b"MOBIZOPT"  # in front of the checksum of a program
DEFAULTS: dict[str, Any] = {
    "queries": 2,
    "batch_size": 3,
    "max_length": 24,
    "candidate_tokens": CANDIDATES,
}


def lora_config(**options: Any) -> peft.LoraConfig:
    """The adapter of every tiny Llama: rank 4 on queries and values, with other `options` of PEFT."""
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], **options)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of this name, which the first to ask for it in a run of the tests has made.

    Args:
        tmp_path_factory: pytest's fixture.
        name: of the folder.
        make: fills it.
    """
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent  # of all processes that run the tests
    with open(directory / f"{name}.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not lock.tell():
            shutil.rmtree(directory / name, ignore_errors=True)  # of one that failed
            (directory / name).mkdir()
            make(directory / name)
            lock.write("made")
    return directory / name


def tiny_program(tmp_path_factory: pytest.TempPathFactory, **options: Any) -> Path:
    """The .pte of a tiny Llama with `DEFAULTS` and other `options` of the export; the same file for the same.

    Args:
        tmp_path_factory: pytest's fixture.
        options: of `export_training_program`; `layers`, 1 by default, is of the model, `kind` one of
            `MODELS` if it is no Llama, and `adapter` a dictionary for `lora_config`.
    """

    def make(folder: Path) -> None:
        layers = options.pop("layers", 1)
        model = MODELS[options.pop("kind")](layers) if "kind" in options else tiny_llama(layers)
        targets = lora_config(**options.pop("adapter", {}))
        export_quietly(model, folder / "tiny.pte", **{"targets": targets, **DEFAULTS, **options})

    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
    return made_once(tmp_path_factory, f"program-{key}", make) / "tiny.pte"


def other_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .pte of the same model with another adapter and another number of queries."""
    return tiny_program(tmp_path_factory, queries=3, seed=1, dynamic_length=False)


def program_bytes(path: Path) -> bytes:
    """A .pte without the checksum at its end."""
    content = path.read_bytes()
    assert content[-12:-4] == MAGIC
    return content[:-12]


def with_checksum(program: bytes) -> bytes:
    """The bytes of a .pte with the checksum that docs/formats.md puts behind them."""
    content = program + MAGIC
    return content + zlib.crc32(content).to_bytes(4, "little")


def export_quietly(model: Any, path: Path, **options: Any) -> Description:
    """`export_training_program` without the warnings of the libraries below it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export_training_program(model, path, **options)


def description_in(content: bytes) -> str:
    """The JSON in the bytes of a program, with the spaces that may follow it."""
    start = next(re.finditer(rb'{"(format|versions)"', content)).start()
    return content[start : content.index(b"\0", start)].decode()


def described(program: Path, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """The program with another description, of the same length, and its checksum mended."""
    content = program_bytes(program)
    text = description_in(content).encode()
    description = json.loads(text)
    description["adapter"]["config"] = {"peft_type": "LORA"}  # makes room
    edit(description)
    other = json.dumps(description).encode()
    return with_checksum(content.replace(text, other.ljust(len(text))))


def entries(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda description: description.update(values)


def tiny_llama(layers: int) -> Any:
    return tiny.causal_lm(LlamaConfig(**{**tiny.SIZES, "num_hidden_layers": layers}, num_key_value_heads=2))


def _sizes(layers: int, **options: Any) -> dict[str, Any]:
    return {**tiny.SIZES, "num_hidden_layers": layers, "num_key_value_heads": 2, **options}


# By the number of their layers: heads of queries share keys and values in all.
MODELS: dict[str, Callable[[int], Any]] = {
    "llama": tiny_llama,
    "tied": lambda layers: tiny.causal_lm(LlamaConfig(**_sizes(layers, tie_word_embeddings=True))),
    "qwen2": lambda layers: tiny.causal_lm(Qwen2Config(**_sizes(layers))),  # with biases
    "qwen3": lambda layers: tiny.causal_lm(Qwen3Config(**_sizes(layers, head_dim=12))),
    "gemma2": lambda layers: tiny.causal_lm(Gemma2Config(**_sizes(layers, head_dim=8))),  # caps its logits
}


def eager_twin(layers: int = 1, **adapter: Any) -> Any:
    """The wrapped eager model that :func:`tiny_program` of as many layers and the same adapter holds."""
    model = tiny_llama(layers)
    mobizo.wrap(model, lora_config(**adapter))
    return model


def tiny_rows(
    rng: torch.Generator, lengths: Sequence[int], *, targets: int = 1, candidates: bool = True
) -> list[EncodedExample]:
    """Examples of random tokens; the last token is the word of a random label.

    Args:
        rng: draws them.
        lengths: tokens of each row, the answer included.
        targets: tokens of the answer.
        candidates: the answer is one of `CANDIDATES`; else any tokens, and the row has no label.
    """
    rows = []
    for length in lengths:
        tokens = torch.randint(3, tiny.VOCABULARY, (length,), generator=rng).tolist()
        label = int(torch.randint(2, (1,), generator=rng)) if candidates else -1
        if candidates:
            tokens[-1] = CANDIDATES[label]
        rows.append(EncodedExample(tokens, label, targets))
    return rows


def activated_rows(
    rng: torch.Generator,
    shapes: Sequence[tuple[int, int]],
    invocation: Sequence[int],
    *,
    targets: int = 1,
    candidates: bool = True,
) -> list[EncodedExample]:
    """Rows as of :func:`tiny_rows` that hold the invocation tokens, and no such token after them.

    Args:
        rng: draws the rest.
        shapes: of each row, the tokens before the invocation and those of the input from there on.
        invocation: tokens of which the first is below 10 and no candidate. Where there is space before it,
            there is one more that does not count.
        targets: tokens of the answer.
        candidates: as in `tiny_rows`.
    """
    rows = tiny_rows(rng, [sum(shape) + 1 for shape in shapes], targets=targets, candidates=candidates)
    for row, (before, inputs) in zip(rows, shapes, strict=True):
        ids = row.input_ids
        after = slice(before + len(invocation), len(ids) - (targets if candidates else 0))
        ids[after] = [10 + token % 20 for token in ids[after]]
        ids[before : before + len(invocation)] = invocation
        if before >= len(invocation):
            ids[: len(invocation)] = invocation
        assert len(ids) == before + inputs + 1
    return rows


def tiny_dataset(path: Path, rng: torch.Generator, **changes: Any) -> Path:
    """A data set for :func:`tiny_program`: rows of 2 to 25 tokens, in an order that repeats some.

    Args:
        path: of the file.
        rng: draws it.
        changes: other fields of `TokenizedDataset`.
    """
    lengths = torch.randint(2, DEFAULTS["max_length"] + 2, (40,), generator=rng).tolist()
    lengths[:2] = [2, DEFAULTS["max_length"] + 1]
    rows = tiny_rows(rng, lengths)
    fields: dict[str, Any] = {
        "train": rows[:16],
        "validation": rows[16:24],
        "test": rows[24:],
        "order": torch.randint(16, (19,), generator=rng).tolist(),
        "labels": ("no", "yes"),
        "candidate_tokens": CANDIDATES,
        "tokenizer": "0123456789abcdef",
    }
    write_dataset(path, TokenizedDataset(**{**fields, **changes}))
    return path


def program_batch(rows: Sequence[EncodedExample], description: Description) -> Batch:
    """What `train_step` takes of some rows: their inputs side by side, so that the tails begin in one column.

    Returns:
        input_ids and attention_mask, int64 [rows, T]; target_positions and target_ids, int64 [rows, K].
    """
    tail, inputs = description.tail_length or 0, [row.input_ids[:-1] for row in rows]
    before = [len(tokens) for tokens in inputs]
    if invocation := description.invocation_tokens:
        before = [
            max(i for i in range(len(tokens)) if tuple(tokens[i : i + len(invocation)]) == invocation)
            for tokens in inputs
        ]
    width = max(description.min_length, max(before) + tail)
    ids = np.full((len(rows), width), description.pad_token)
    mask = np.zeros_like(ids)
    positions = np.zeros((len(rows), description.targets_per_row), np.int64)
    targets = np.full_like(positions, -100)
    for i, (row, tokens) in enumerate(zip(rows, inputs, strict=True)):
        first = width - tail - before[i]
        last = first + len(tokens)
        ids[i, first:last], mask[i, first:last] = tokens, 1
        positions[i, : row.targets] = range(last - row.targets, last)
        targets[i, : row.targets] = row.input_ids[-row.targets :]
    return ids, mask, positions, targets


def no_update(description: Description) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The arguments of an update by plain SGD that changes nothing."""
    return np.zeros(description.queries, np.int64), np.zeros(description.queries, np.float32)


def lora_b_of(trainer: Trainer) -> list[torch.Tensor]:
    """The LoRA-B of a trainer in the order of its description."""
    return [torch.from_numpy(value) for name, value in trainer.adapter().items() if ".lora_B." in name]


def assert_same_adapter(trainer: Trainer, model: torch.nn.Module | Trainer) -> None:
    """The LoRA-B of a trainer are those of another one, or of a wrapped eager model, to the bit."""
    theirs = lora_b_of(model) if isinstance(model, Trainer) else [
        layer.lora_b for layer in adapter_layers(model).values()
    ]  # fmt: skip
    for mine, other in zip(lora_b_of(trainer), theirs, strict=True):
        assert_same_bits(mine, other.detach())


class Unchanged:
    """A block after which a trainer has the adapter that it had before, and still works."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        self.before = lora_b_of(self.trainer)

    def __exit__(self, *_: object) -> None:
        for now, before in zip(lora_b_of(self.trainer), self.before, strict=True):
            assert torch.equal(now, before)
        if self.trainer.description.optimizer.plain:
            assert self.trainer.update(*no_update(self.trainer.description)) == 0
