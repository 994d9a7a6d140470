"""How the members of a program's description are read: what each makes of a value of JSON.

executorch_ops/trainer/program/members.h is the native twin.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mobizo_kernels.files.strict_json import member, of_kind

MOST_SIZE = 2**31 - 1  # ExecuTorch's sizes are int32


def check_size(size: int, least: int) -> None:
    """Raise ValueError unless it is a size from `least` on that ExecuTorch can hold."""
    if size < least:
        raise ValueError(f"expected at least {least}, got {size}")
    if size > MOST_SIZE:
        raise ValueError(f"expected at most {MOST_SIZE}, got {size}")


# What makes a value of Python of one of JSON, or raises ValueError.
Reader = Callable[[Any], Any]


def list_of(item: Reader) -> Reader:
    """Of a list of what `item` reads: a tuple."""
    return lambda value: tuple(item(entry) for entry in of_kind(list, value))


def or_null(reader: Reader) -> Reader:
    """Of null, too: None."""
    return lambda value: None if value is None else reader(value)


def object_of(
    make: Callable[..., Any], members: Mapping[str, Reader], optional: Mapping[str, Reader] | None = None
) -> Reader:
    """Calls `make` with the members of an object that has all of these, perhaps some `optional` ones, and no
    others.
    """

    def read(value: Any) -> Any:
        there = {name: reader for name, reader in (optional or {}).items() if name in of_kind(dict, value)}
        known = {**members, **there}
        found = {name: member(value, name, reader) for name, reader in known.items()}
        for name in value:
            if name not in known:
                raise ValueError(f"'{name}' is unknown")
        return make(**found)

    return read


text, whole, boolean = (partial(of_kind, kind) for kind in (str, int, bool))


def shape(value: Any) -> tuple[int, ...]:
    """Of a list of two whole numbers."""
    if len(of_kind(list, value)) != 2:
        raise ValueError(f"expected two sizes, got {json.dumps(value, separators=(',', ':'))}")
    return tuple(whole(size) for size in value)
