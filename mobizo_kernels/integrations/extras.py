"""Libraries that an extra of this package brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def of_extra(extra: str) -> Iterator[None]:
    """An import in the block that fails, also of a version that is too old, says which extra to install."""
    try:
        yield
    except ImportError as error:
        text = f"{error}; pip install 'mobizo-kernels[{extra}]' brings what this module needs"
        raise type(error)(text, name=error.name, path=error.path) from error
