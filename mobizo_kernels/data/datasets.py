"""Labelled texts and their fixed three-way split."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mobizo_kernels.errors import InputError, listed, shortened

# One split for every run and every seed: runs can be compared, and no run trains on a test row of another.
_SPLIT_SALT = b"mobizo split 1"
_TEST_SHARE = 0.2
_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Example:
    """One text with its label.

    Attributes:
        text: a prompt may cut its end.
        label: the name of its class.
        columns: names and values of what else a prompt may show, never cut, e.g. a question on the text.
    """

    text: str
    label: str
    columns: tuple[tuple[str, str], ...] = ()


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


def split(
    examples: Iterable[Example], balanced: bool = False, test: Sequence[Example] | None = None
) -> Splits:
    """Split examples by a hash of their text: the same rows, in any order, always give the same split.

    A fifth of each class goes to test and a tenth to validation; with `balanced`, a fifth and a tenth of
    the smallest class are taken from every class. A repeated row counts once. Of rows that differ in nothing
    but their label the first counts, and a warning says how many such contradictions there are. Rows that
    share a text but differ in a column stay together, or a test text could be trained on. The parts are of
    just these sizes if no text is shared, and a little larger otherwise.

    Args:
        examples: all rows.
        balanced: hold out as many rows of each class.
        test: rows held out by those who made the data. They are then the test split, in an order of ours,
            and examples whose text is in them are left out.

    Raises:
        InputError: fewer than two classes, or a class too small to be in all three lists.
    """
    held_out = None if test is None else _without_repeats(test)
    seen = {example.text for example in held_out or ()}
    rows = [example for example in _without_repeats(examples) if example.text not in seen]
    sizes = Counter(example.label for example in rows)
    if len(sizes) < 2:
        raise InputError(f"data: expected at least two labels, got {len(sizes)} ({listed(sizes)})")
    smallest = min(sizes.values())
    shares = (_VALIDATION_SHARE,) if test is not None else (_TEST_SHARE, _VALIDATION_SHARE)
    quotas = [
        {label: max(1, round(share * (smallest if balanced else size))) for label, size in sizes.items()}
        for share in shares
    ]
    *first, train = _fill_in_turn(rows, quotas)
    validation = first[-1]
    parts = train, validation, _by_label(held_out) if held_out is not None else first[0]
    for label, size in sizes.items():
        if not all(part.get(label) for part in parts):
            raise InputError(
                "data: expected at least 3 texts of each label (to train, to validate and to test), "
                f"got {size} of {label!r}"
            )
    if strangers := parts[2].keys() - sizes.keys():
        raise InputError(f"data: the label {min(strangers)!r} is in the test rows alone")
    return Splits(*(_interleave(part) for part in parts))


def _without_repeats(examples: Iterable[Example]) -> list[Example]:
    """The first of each text and its columns; says how many of them are there with another label too."""
    first: dict[tuple[str, tuple[tuple[str, str], ...]], Example] = {}
    contradicted = dict[str, Example]()
    for example in examples:
        kept = first.setdefault((example.text, example.columns), example)
        if kept.label != example.label:
            contradicted.setdefault(example.text, kept)
    if contradicted:
        one = next(iter(contradicted.values()))
        logging.getLogger(__name__).warning(
            "data: %d of %d texts have more than one label, one being %s; the label of the first row counts",
            len(contradicted),
            len(first),
            shortened(one.text),
        )
    return list(first.values())


def _fill_in_turn(
    rows: Sequence[Example], quotas: Sequence[dict[str, int]]
) -> list[dict[str, list[Example]]]:
    """Parts by label: one for each of `quotas`, filled in turn with rows in the order of the hash, and the
    rest. Rows of one text go to the first part that lacks rows of any of their labels.
    """
    texts: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        texts[row.text].append(row)
    parts: list[dict[str, list[Example]]] = [defaultdict(list) for _ in range(len(quotas) + 1)]
    for text in sorted(texts, key=_split_key):
        together = sorted(texts[text], key=lambda row: row.columns)
        for part, quota in zip(parts, quotas, strict=False):
            if any(len(part[row.label]) < quota[row.label] for row in together):
                break
        else:
            part = parts[-1]
        for row in together:
            part[row.label].append(row)
    return parts


def _by_label(rows: Sequence[Example]) -> dict[str, list[Example]]:
    """The rows of each label, in the order of the hash."""
    (part,) = _fill_in_turn(rows, ())
    return part


def _split_key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16, key=_SPLIT_SALT).digest()


def _interleave(by_label: dict[str, list[Example]]) -> list[Example]:
    """All examples, ordered so that every prefix holds the classes in about the same proportions."""
    placed = [
        ((index + 0.5) / len(rows), label, row.text, row.columns)
        for label, rows in by_label.items()
        for index, row in enumerate(rows)
    ]
    return [Example(text, label, columns) for _, label, text, columns in sorted(placed)]
