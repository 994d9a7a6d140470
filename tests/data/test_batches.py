"""Batches: their size, their balance, their padding."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from mobizo_kernels.data import EncodedExample, collate, evaluation_batches, training_batches
from mobizo_kernels.data import batches as batching
from mobizo_kernels.errors import InputError


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


def of_lengths(*lengths: Sequence[int]) -> list[EncodedExample]:
    """One example of each length, lengths[label] being those of a label."""
    return [
        EncodedExample([label, index, *range(length - 2)], label)
        for label, sizes in enumerate(lengths)
        for index, length in enumerate(sizes)
    ]


def widths(batch: list[EncodedExample]) -> list[int]:
    return [len(row.input_ids) for row in batch]


def test_rows_of_one_length_are_put_together_wherever_there_are_enough() -> None:
    # In order of length the row of length 3 alone would shift all of one class beside the other.
    rows = of_lengths([3, *[5] * 20, *[7] * 20], [*[5] * 20, *[7] * 20, 9])
    epoch = list(itertools.islice(training_batches(rows, 4, 0), 20))
    assert [set(widths(batch)) for batch in epoch if len(set(widths(batch))) == 1].count({5}) == 10
    assert [set(widths(batch)) for batch in epoch if len(set(widths(batch))) == 1].count({7}) == 10


@pytest.mark.parametrize("batch_size", [2, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_no_more_is_padded_than_the_lengths_of_the_classes_ask_for(batch_size: int, seed: int) -> None:
    rng = random.Random(seed)
    short, long = ([rng.randint(3 + shift, 30 + shift) for _ in range(400)] for shift in (0, 2))
    batches = list(
        itertools.islice(training_batches(of_lengths(short, long), batch_size, seed), 800 // batch_size)
    )
    padding = sum(max(widths(batch)) * batch_size - sum(widths(batch)) for batch in batches)
    # Pairs in order of length are the best there is; a batch of several pairs spans a few lengths more.
    least = sum(abs(a - b) for a, b in zip(sorted(short), sorted(long), strict=True))
    assert least <= padding <= least * 1.1 + 8 * batch_size
    assert sum(len(set(widths(batch))) == 1 for batch in batches) > 0.6 * len(batches)


def test_rows_of_rare_lengths_are_taken_as_often() -> None:
    lengths = [3, *[10] * 30, *[11] * 17, 39], [4, 7, *[10] * 11, *[11] * 35, 40]
    rows = of_lengths(*lengths)
    epochs, batch_size = 400, 7
    per_epoch = 2 * min(map(len, lengths)) // batch_size
    seen = Counter(
        (row.label, row.input_ids[1])
        for batch in itertools.islice(training_batches(rows, batch_size, 1), epochs * per_epoch)
        for row in batch
    )
    for label, sizes in enumerate(lengths):
        # Rows left over at either end of an epoch are missed now and then.
        expected = epochs * min(map(len, lengths)) / len(sizes)
        for index in range(len(sizes)):
            assert seen[label, index] == pytest.approx(expected, rel=0.35)


def test_evaluation_batches_take_each_row_once_within_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = examples(50, 70)
    monkeypatch.setattr(batching, "EVALUATION_TOKENS", 90)
    batches = evaluation_batches(rows)
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(120))
    longest = [max(len(rows[row].input_ids) for row in batch) for batch in batches]
    assert longest == sorted(longest)
    for batch, width in zip(batches, longest, strict=True):
        assert len(batch) * width <= 90
    # Another row would have been too much for any of them.
    for batch, following in itertools.pairwise(batches):
        assert (len(batch) + 1) * len(rows[following[0]].input_ids) > 90


def test_an_example_beyond_the_budget_comes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = of_lengths([50, 3, 40], [3])
    monkeypatch.setattr(batching, "EVALUATION_TOKENS", 20)
    assert evaluation_batches(rows) == [[1, 3], [2], [0]]
    assert evaluation_batches([]) == []


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
