"""Conversations whose answers are free text: how they are read, and their fixed three-way split."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobizo_kernels.data.files import blame_line, json_objects, string_value
from mobizo_kernels.errors import InputError, listed, shortened

_SPLIT_SALT = b"mobizo answers 1"
_TEST_SHARE = 0.2
_VALIDATION_SHARE = 0.1
_ROLES = ("system", "user", "assistant")
_STRING = ("a string",)


@dataclass(frozen=True)
class Conversation:
    """What was said in turn.

    Attributes:
        messages: role and content of each: "system" at the beginning or not at all, then "user" and
            "assistant" in turn, the last of them the assistant's.
        where: file and line, to be named in errors.
    """

    messages: tuple[tuple[str, str], ...]
    where: str = field(default="a row", compare=False)

    @property
    def answers(self) -> tuple[int, ...]:
        """Which messages are answers."""
        return tuple(index for index, (role, _) in enumerate(self.messages) if role == "assistant")

    @property
    def questions(self) -> tuple[str, ...]:
        """What the user asks, in turn."""
        return tuple(content for role, content in self.messages if role == "user")


@dataclass(frozen=True)
class ConversationSplits:
    """Three disjoint lists."""

    train: list[Conversation]
    validation: list[Conversation]
    test: list[Conversation]


def question(prompt: str, response: str, where: str = "a row") -> Conversation:
    """A conversation of one question and its answer."""
    return Conversation((("user", prompt), ("assistant", response)), where)


def read_conversations(path: Path) -> list[Conversation]:
    """Read every row of a ``.jsonl`` file (UTF-8): an object with `prompt` and `response`, both texts, or
    with `messages`, a list of objects with `role` and `content`. White space around a text is dropped; other
    names of a row are passed over.

    Raises:
        InputError: as :func:`mobizo_kernels.data.files.read_file` does for lines of JSON; or, naming the
            line, a row has neither or both, a text is empty or no string, a message has other names, roles
            are not in turn, or the last message is not the assistant's.
    """
    found = []
    for line, row in json_objects(path):
        with blame_line(path, line):
            found.append(Conversation(_messages(row), f"{path} line {line}"))
    if not found:
        raise InputError(f"data: {path} has no rows")
    return found


def split_conversations(rows: Iterable[Conversation]) -> ConversationSplits:
    """Split by a hash of what is asked first: the same rows, in any order, always give the same split. About
    a fifth goes to test and a tenth to validation. A repeated row counts once, and rows that begin with the
    same question stay together, whatever the system was told; if they are more than go to validation, those
    that begin with the same two questions, and so on.

    Raises:
        InputError: fewer than three different questions.
    """
    different = list(dict.fromkeys(rows))
    tenth = _quota(_VALIDATION_SHARE, different)
    together = _grouped(different, tenth)
    if len(together) < 3:
        raise InputError(
            "data: expected at least 3 different questions (to train, to validate and to test), got "
            f"{len(together)}"
        )
    parts: tuple[list[Conversation], ...] = ([], [], [])
    quotas = (_quota(_TEST_SHARE, different), tenth, len(different))
    for opening in sorted(together, key=_split_key):
        part = next(part for part, quota in zip(parts, quotas, strict=True) if len(part) < quota)
        part.extend(sorted(together[opening], key=lambda row: row.messages))
    test, validation, train = parts
    if not train or not validation:
        raise InputError("data: most rows begin with one question: none are left to train or to validate on")
    return ConversationSplits(train, validation, test)


def _quota(share: float, rows: Sequence[Conversation]) -> int:
    return max(1, round(share * len(rows)))


def _grouped(rows: Sequence[Conversation], most: int) -> dict[tuple[str, ...], list[Conversation]]:
    """Rows by the fewest of their first questions that make groups of `most` at most, or by all of them."""
    found: dict[tuple[str, ...], list[Conversation]] = {}
    open_groups, asked = [list(rows)], 0
    while open_groups:
        asked += 1
        finer: dict[tuple[str, ...], list[Conversation]] = defaultdict(list)
        for row in itertools.chain.from_iterable(open_groups):
            finer[row.questions[:asked]].append(row)
        open_groups = []
        for opening, group in finer.items():
            if len(group) > most and any(len(row.questions) > asked for row in group):
                open_groups.append(group)
            else:
                found[opening] = group
    return found


def _split_key(questions: Sequence[str]) -> bytes:
    text = "\0".join(part for question in questions for part in ("user", question))
    return hashlib.blake2b(text.encode(), digest_size=16, key=_SPLIT_SALT).digest()


def _messages(row: Any) -> tuple[tuple[str, str], ...]:
    """The messages of a row. Raises ValueError, whose text goes on after "line 5"."""
    pair = [name for name in ("prompt", "response") if name in row]
    if "messages" in row and pair:
        raise ValueError(f"has {pair[0]!r} and 'messages', expected one of them")
    if "messages" not in row:
        if len(pair) < 2:
            raise ValueError(
                f"has neither 'prompt' and 'response' nor 'messages', only {listed(row)}; texts with labels "
                "need --template and --verbalizer"
            )
        prompt, response = (string_value(row[name], name, _STRING).strip() for name in pair)
        return (("user", prompt), ("assistant", response))
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"has no list of messages, but {shortened(repr(messages))}")
    found = tuple(_message(number, message) for number, message in enumerate(messages, 1))
    roles = [role for role, _ in found]
    turns = roles[1:] if roles[0] == "system" else roles
    for number, (role, expected) in enumerate(
        zip(turns, ("user", "assistant") * len(turns), strict=False), 1 + len(roles) - len(turns)
    ):
        if role != expected:
            raise ValueError(f"has the role {role!r} in message {number}, expected {expected!r}")
    if len(turns) < 2 or turns[-1] != "assistant":
        raise ValueError("ends without an answer of the assistant")
    return found


def _message(number: int, message: Any) -> tuple[str, str]:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        got = listed(message) if isinstance(message, dict) else shortened(repr(message))
        raise ValueError(f"has in message {number} not 'role' and 'content', but {got}")
    role = message["role"]
    if role not in _ROLES:
        raise ValueError(
            f"has the role {shortened(str(role))} in message {number}, expected {listed(_ROLES)}"
        )
    return role, string_value(message["content"], "content", _STRING).strip()
