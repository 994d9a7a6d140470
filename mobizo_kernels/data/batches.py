"""Batches of encoded examples: class-balanced and of like length for training, left-padded for the model."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

from mobizo_kernels.data.errors import InputError
from mobizo_kernels.data.prompts import EncodedExample

IGNORED_LABEL = -100  # the label of a token without a loss, as in transformers


def training_order(examples: Sequence[EncodedExample], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of exactly `batch_size` row numbers without end, the same for the same arguments.

    Every batch holds the classes in equal parts (as nearly as its size allows), so that a step is not spent
    on the share of the classes in it, and texts of about the same length, so that little is padded. An
    epoch takes as many rows of each class as the smallest class has, drawn anew each time, and its batches
    come in random order.

    Raises:
        InputError: batch_size is below 1, or above what one epoch holds.
    """
    by_label: dict[int, list[int]] = defaultdict(list)
    for row, example in enumerate(examples):
        by_label[example.label].append(row)
    rows_per_class = min(map(len, by_label.values()), default=0)
    rows_per_epoch = rows_per_class * len(by_label)
    if not 1 <= batch_size <= rows_per_epoch:
        raise InputError(
            f"batch_size: expected 1 to {rows_per_epoch}, the rows of one balanced epoch, got {batch_size}"
        )
    lengths = [len(example.input_ids) for example in examples]
    return _epochs(list(by_label.values()), lengths, rows_per_class, batch_size, random.Random(seed))


def training_batches(
    examples: Sequence[EncodedExample], batch_size: int, seed: int
) -> Iterator[list[EncodedExample]]:
    """The examples in the batches of :func:`training_order`. Raises InputError as it does."""
    order = training_order(examples, batch_size, seed)
    return ([examples[row] for row in batch] for batch in order)


def _epochs(
    classes: list[list[int]], lengths: list[int], rows_per_class: int, batch_size: int, rng: random.Random
) -> Iterator[list[int]]:
    while True:
        # The k-th longest rows of all classes side by side: alike in length, and the classes alternate.
        chosen = [
            sorted(rng.sample(rows, rows_per_class), key=lengths.__getitem__)
            for rows in rng.sample(classes, len(classes))
        ]
        ordered = [row for rank in zip(*chosen, strict=True) for row in rank]
        # Rows that fill no batch are left out at either end, so that it is not always the longest.
        start = rng.randrange(len(ordered) % batch_size + 1)
        full = range(start, len(ordered) - batch_size + 1, batch_size)
        batches = [ordered[first : first + batch_size] for first in full]
        rng.shuffle(batches)
        yield from batches


def collate(examples: Sequence[EncodedExample], pad_token: int) -> dict[str, torch.Tensor]:
    """One batch for the model: the answer ends every row, and only its tokens have a label.

    Returns:
        input_ids, attention_mask and labels, each int64 [rows, length of the longest row], padded on the
        left. labels is `IGNORED_LABEL` but for the answer; as in transformers it is the model's output one
        position earlier that is compared with a label.
    """
    width = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), width), pad_token)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    for row, example in enumerate(examples):
        input_ids[row, width - len(example.input_ids) :] = torch.tensor(example.input_ids)
        attention_mask[row, width - len(example.input_ids) :] = 1
        labels[row, -example.targets :] = input_ids[row, -example.targets :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
