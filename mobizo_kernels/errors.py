"""The one error type that means: the input is at fault, not the program."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

_NO_MEMORY = ("can't allocate memory", "std::bad_alloc", "failed to map segment from shared object")


class InputError(ValueError):
    """Input that the user can mend. Its text is one sentence naming what was expected and what came."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its full stop, to be quoted inside an `InputError`."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")


def naming(what: str, sentence: str) -> str:
    """The sentence, with `what` it is about before it unless it begins with that."""
    return sentence if sentence.startswith((f"{what}:", f"{what} ")) else f"{what}: {sentence}"


def shortened(text: str, most: int = 40) -> str:
    """`text` in quotes, to be part of a sentence: its end is left out if it is long."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def listed(names: Collection[str], most: int = 12) -> str:
    """Names in quotes, to be part of a sentence: the last of many are counted only."""
    shown = ", ".join(shortened(name) for name in list(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def refuse_half_characters(text: str) -> None:
    """Raise ValueError if `text` holds half of a pair of surrogates, as JSON and a shell can: no file, and no
    tokenizer, has a place for it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a character (a lone surrogate): {shortened(text)}") from error


def memory_exhausted(error: BaseException) -> str | None:
    """What there is to say of an error of Python, C++, torch, for a CPU or GPU, or the loader of libraries,
    that means that there is no more memory; None for any other.
    """
    text = str(error)
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not known and not any(sign in text for sign in _NO_MEMORY):
        return None
    asked = re.search(r"allocate ([\d.]+ (?:bytes|[KMGT]iB))", text)
    return "memory is exhausted" + (f": {asked[1]} more were asked for" if asked else "")


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """A ValueError that leaves the block gets `where` in front."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@contextmanager
def blame_input(what: str) -> Iterator[None]:
    """Turn a ValueError or OSError that checks of user input raise inside the block into an `InputError` that
    begins with `what`, once.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(naming(what, first_line(error))) from error
