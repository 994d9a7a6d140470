"""Batches of encoded examples: class-balanced and of like length for training, left-padded for the model."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import torch

from mobizo_kernels.conventions import IGNORED
from mobizo_kernels.data.prompts import EncodedExample
from mobizo_kernels.errors import InputError

EVALUATION_TOKENS = 2048
"""Most tokens of a batch that is only scored."""


def training_order(examples: Sequence[EncodedExample], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of exactly `batch_size` row numbers without end, the same for the same arguments.

    Every batch holds the classes in equal parts (as nearly as its size allows), so that a step is not spent
    on the share of the classes in it, and texts of the same length wherever there are enough, of about the
    same length elsewhere, so that little is padded: no more than classes of unlike lengths ask for. An epoch
    takes as many rows of each class as the smallest class has, drawn anew each time whatever their length,
    and its batches come in random order.

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
    whole = math.lcm(batch_size, len(classes)) // len(classes)
    while True:
        chosen = [
            sorted(rng.sample(rows, rows_per_class), key=lengths.__getitem__)
            for rows in rng.sample(classes, len(classes))
        ]
        alike, rest = _rows_of_one_length(chosen, lengths, whole)
        # Of the rest the k-th longest rows of all classes side by side. With the rows of one length taken out
        # first the padding is not more, and in fewer batches (as in transport with cost |x - y|).
        ordered = _in_turn(rest)
        # Rows that fill no batch are left out at either end, so that it is not always the longest.
        start = rng.randrange(len(ordered) % batch_size + 1)
        last = start + len(ordered) // batch_size * batch_size
        ordered = _in_turn(alike) + ordered[start:last]
        batches = [ordered[first : first + batch_size] for first in range(0, len(ordered), batch_size)]
        rng.shuffle(batches)
        yield from batches


def _rows_of_one_length(
    classes: list[list[int]], lengths: list[int], whole: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Take out of `classes`, sorted by length, as many rows of each length as all of them have, in multiples
    of `whole`. What was taken and what is left, by class, still sorted.
    """
    counts = [Counter(lengths[row] for row in rows) for rows in classes]
    common = {
        length: min(count[length] for count in counts) // whole * whole
        for length in set.intersection(*map(set, counts))
    }
    taken: list[list[int]] = []
    left: list[list[int]] = []
    for rows in classes:
        parts: tuple[list[int], list[int]] = ([], [])
        for length, alike in itertools.groupby(rows, key=lengths.__getitem__):
            group, n = list(alike), common.get(length, 0)
            parts[0].extend(group[:n])
            parts[1].extend(group[n:])
        taken.append(parts[0])
        left.append(parts[1])
    return taken, left


def _in_turn(classes: list[list[int]]) -> list[int]:
    """The first row of each class, the second of each, and so on."""
    return [row for rank in zip(*classes, strict=True) for row in rank]


def evaluation_batches(examples: Sequence[EncodedExample], most_tokens: int | None = None) -> list[list[int]]:
    """The numbers of all examples in batches of like length, the shortest first.

    A batch has at most `most_tokens` tokens, `EVALUATION_TOKENS` by default, padding included, or is a single
    example: short texts come in large batches, and long ones do not take more memory.
    """
    most_tokens = EVALUATION_TOKENS if most_tokens is None else most_tokens
    batches: list[list[int]] = []
    for row in sorted(range(len(examples)), key=lambda row: len(examples[row].input_ids)):
        if batches and (len(batches[-1]) + 1) * len(examples[row].input_ids) <= most_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def collate(examples: Sequence[EncodedExample], pad_token: int) -> dict[str, torch.Tensor]:
    """One batch for the model: the answer ends every row, and only its tokens have a label.

    Returns:
        input_ids, attention_mask and labels, each int64 [rows, length of the longest row], padded on the
        left. labels is `IGNORED` but for the answer; as in transformers it is the model's output one
        position earlier that is compared with a label.
    """
    width = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), width), pad_token, dtype=torch.int64, device="cpu")
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for row, example in enumerate(examples):
        input_ids[row, width - len(example.input_ids) :] = torch.tensor(example.input_ids, device="cpu")
        attention_mask[row, width - len(example.input_ids) :] = 1
        labels[row, -example.targets :] = input_ids[row, -example.targets :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
