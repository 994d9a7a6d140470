"""The one error type that means: the input is at fault, not the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Input that the user can mend. Its text is one sentence naming what was expected and what came."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without its full stop, to be quoted inside an `InputError`."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")


@contextmanager
def blame_input(what: str) -> Iterator[None]:
    """Turn a ValueError or OSError that checks of user input raise inside the block into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{what}: {first_line(error)}") from error
