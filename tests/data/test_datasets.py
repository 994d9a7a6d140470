"""Labelled texts: what is read from files and packages, and how it is split."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_texts import reviews, write_csv

from mobizo_kernels.data import Example, Splits, load_splits
from mobizo_kernels.data.datasets import split
from mobizo_kernels.errors import InputError


def examples(**sizes: int) -> list[Example]:
    return [Example(f"{label} {index}", label) for label, size in sizes.items() for index in range(size)]


def labels(part: Sequence[Example]) -> Counter[str]:
    return Counter(example.label for example in part)


def test_split_is_a_partition_that_ignores_the_order_of_rows() -> None:
    rows = examples(a=50, b=31, c=3)
    splits = split(rows)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert split(shuffled) == splits
    assert Counter(splits.train + splits.validation + splits.test) == Counter(rows)


def test_split_is_stratified() -> None:
    splits = split(examples(a=100, b=30, c=3))
    assert labels(splits.test) == {"a": 20, "b": 6, "c": 1}
    assert labels(splits.validation) == {"a": 10, "b": 3, "c": 1}
    assert splits.labels == ("a", "b", "c")


def test_balanced_split_holds_out_as_many_of_each_label() -> None:
    splits = split(examples(a=100, b=30), balanced=True)
    assert labels(splits.test) == {"a": 6, "b": 6}
    assert labels(splits.validation) == {"a": 3, "b": 3}
    assert labels(splits.train) == {"a": 91, "b": 21}


def test_split_takes_a_repeated_text_once() -> None:
    splits = split([*examples(a=9, b=9), Example("a 0", "b"), Example("b 5", "b")])
    assert Counter(splits.train + splits.validation + splits.test) == Counter(examples(a=9, b=9))


def test_contradictory_labels_are_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = examples(a=9, b=9)
    split([*rows, *rows])
    assert not caplog.records
    split([*rows, Example("a 0", "b"), Example("a 0", "c"), Example("b 5", "a"), Example("b 5", "a")])
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert said.getMessage() == (
        "data: 2 of 18 texts have more than one label, one being 'a 0'; the label of the first row counts"
    )


def questions(rng: random.Random, texts: int) -> list[Example]:
    """One to four questions on each text, of either label."""
    return [
        Example(f"text {text}", rng.choice("ab"), (("question", f"question {number}"),))
        for text in range(texts)
        for number in range(rng.randint(1, 4))
    ]


def texts(part: Sequence[Example]) -> set[str]:
    return {example.text for example in part}


def assert_no_text_is_shared(splits: Splits) -> None:
    assert not texts(splits.train) & texts(splits.validation)
    assert not texts(splits.train) & texts(splits.test)
    assert not texts(splits.validation) & texts(splits.test)


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_one_text_stay_together(seed: int) -> None:
    rows = questions(random.Random(seed), texts=200)
    splits = split([*rows, *rows[:9]])
    assert Counter(splits.train + splits.validation + splits.test) == Counter(rows)
    assert_no_text_is_shared(splits)
    assert len(splits.test) == pytest.approx(0.22 * len(rows), rel=0.1)
    assert len(splits.validation) == pytest.approx(0.12 * len(rows), rel=0.2)
    assert split(random.Random(seed).sample(rows, len(rows))) == splits


def test_rows_held_out_by_others_are_the_test_split() -> None:
    rows = questions(random.Random(0), texts=200)
    test = [row for row in rows if int(row.text.split()[1]) % 4 == 0]
    splits = split(rows, test=[*test, test[0]])
    assert Counter(splits.test) == Counter(test)
    assert Counter(splits.train + splits.validation) == Counter(rows) - Counter(test)
    assert_no_text_is_shared(splits)
    assert len(splits.validation) == pytest.approx(0.12 * (len(rows) - len(test)), rel=0.2)


def test_split_refuses_a_test_split_with_other_labels() -> None:
    with pytest.raises(InputError, match="the label 'c' is in the test rows alone"):
        split(examples(a=9, b=9), test=[Example(label, label) for label in "abc"])
    with pytest.raises(InputError, match="at least 3 texts of each label .* of 'b'"):
        split(examples(a=9, b=9), test=[Example("a", "a")])


@pytest.mark.parametrize("rows", [1, 7, 20, 33])
def test_a_prefix_holds_the_labels_in_the_proportions_of_the_whole(rows: int) -> None:
    test = split(examples(a=300, b=100)).test
    assert labels(test[:rows])["a"] == pytest.approx(0.75 * rows, abs=1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a": 9}, "at least two labels, got 1 ('a')"),
        ({"a": 9, "b": 2}, "at least 3 texts of each label .* 2 of 'b'"),
    ],
)
def test_split_refuses_too_little(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("('a')", r"\('a'\)")):
        split(examples(**sizes))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file .*absent.csv"):
        load_splits(str(tmp_path / "absent.csv"))


def test_a_named_task_has_columns_of_its_own() -> None:
    with pytest.raises(InputError, match="text_column: expected a file with it, and 'boolq' is a named task"):
        load_splits("boolq", text_column="passage")
    with pytest.raises(InputError, match="label_column: .*, got 'answer'"):
        load_splits("boolq", label_column="answer")


def test_load_splits_of_a_file(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "data.csv", reviews(), ("review", "verdict"))
    assert load_splits(str(file), "review", "verdict") == split(reviews())
