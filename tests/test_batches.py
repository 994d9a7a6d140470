"""Batches: their size, their balance, their padding."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from mobizo_kernels.data import EncodedExample, InputError, collate, training_batches


def examples(*sizes: int, longest: int = 40) -> list[EncodedExample]:
    """sizes[label] different examples of each label, of lengths 3 to `longest`."""
    return [
        EncodedExample([label, index, *range(1 + 7 * index % (longest - 2))], label)
        for label, size in enumerate(sizes)
        for index in range(size)
    ]


def counts(batch: list[EncodedExample], labels: int) -> list[int]:
    counter = Counter(example.label for example in batch)
    return [counter[label] for label in range(labels)]


@pytest.mark.parametrize("sizes", [(50, 50), (11, 90), (20, 30, 40)])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 7, 22])
def test_every_batch_is_full_and_as_balanced_as_can_be(sizes: tuple[int, ...], batch_size: int) -> None:
    for batch in itertools.islice(training_batches(examples(*sizes), batch_size, 0), 60):
        assert len(batch) == batch_size
        share = counts(batch, len(sizes))
        assert max(share) - min(share) == (0 if batch_size % len(sizes) == 0 else 1)


def test_an_epoch_takes_no_row_twice_and_epochs_take_all() -> None:
    batches = training_batches(examples(12, 40), 5, seed=3)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(60):
        epoch = Counter(tuple(row.input_ids) for _ in range(24 // 5) for row in next(batches))
        assert set(epoch.values()) == {1}
        seen += epoch
    assert len(seen) == 52


def test_batches_follow_the_seed() -> None:
    def first(seed: int) -> list[list[EncodedExample]]:
        return list(itertools.islice(training_batches(examples(30, 30), 4, seed), 20))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_rows_of_a_batch_are_of_like_length() -> None:
    rows = examples(200, 300)
    batches = itertools.islice(training_batches(rows, 10, 0), 40)
    padding = [
        max(len(row.input_ids) for row in batch) - len(row.input_ids) for batch in batches for row in batch
    ]
    assert sum(padding) / len(padding) < 2  # in random order it is about 16


def test_batches_come_in_no_order_of_length() -> None:
    lengths = [
        len(batch[0].input_ids) for batch in itertools.islice(training_batches(examples(90, 90), 6, 0), 30)
    ]
    assert lengths != sorted(lengths)


@pytest.mark.parametrize("batch_size", [0, -1, 21])
def test_bad_batch_size(batch_size: int) -> None:
    with pytest.raises(InputError, match=f"batch_size: expected 1 to 20, .* got {batch_size}"):
        training_batches(examples(10, 90), batch_size, 0)


def test_collate_pads_on_the_left_and_labels_the_last_token() -> None:
    batch = collate([EncodedExample([5, 6, 7], 0), EncodedExample([8, 9], 1)], pad_token=3)
    expected = {
        "input_ids": [[5, 6, 7], [3, 8, 9]],
        "attention_mask": [[1, 1, 1], [0, 1, 1]],
        "labels": [[-100, -100, 7], [-100, -100, 9]],
    }
    assert batch.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(batch[name], torch.tensor(values))
