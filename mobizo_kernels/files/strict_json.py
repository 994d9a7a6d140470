"""JSON that means one thing: what Python's reader lets pass beyond the standard is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mobizo_kernels.errors import blaming, refuse_half_characters

_MOST_LEVELS = 64
_KINDS = {
    type(None): "null", bool: "a boolean", int: "a whole number", float: "a number", str: "a string",
    list: "a list", dict: "an object",
}  # fmt: skip


def loads(text: str) -> Any:
    """The value that `text` (RFC 8259) stands for.

    Raises:
        ValueError: not JSON; NaN or an infinity, which are not JSON either; a name given twice in one object;
            or nested deeper, or a number longer, than can be read. Its text is the end of a sentence.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_no_number,
            parse_int=_whole,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from error


def loads_as_native(content: bytes) -> Any:
    """The value that a file holds which the native trainer reads, too: json_parser.cpp in
    executorch_ops/trainer/files takes and refuses the same bytes.

    Raises:
        ValueError: what :func:`loads` refuses; bytes that are not UTF-8, half a pair of surrogates, whole
            numbers beyond 64 bits, and more than 64 levels.
    """
    value = loads(content.decode())
    rest = [(value, 0)]
    while rest:
        item, level = rest.pop()
        if level > _MOST_LEVELS:
            raise ValueError(f"nested deeper than {_MOST_LEVELS} levels")
        if isinstance(item, str):
            refuse_half_characters(item)
        elif type(item) is int and not -(2**63) <= item < 2**63:
            raise ValueError(f"expected whole numbers of 64 bits, got {item}")
        elif isinstance(item, dict):
            rest.extend((name, level) for name in item)
            rest.extend((inner, level + 1) for inner in item.values())
        elif isinstance(item, list):
            rest.extend((inner, level + 1) for inner in item)
    return value


def of_kind(kind: type, value: Any) -> Any:
    """`value`, unless it is of another type of JSON: a ValueError names both, as json.cpp does."""
    if type(value) is not kind:
        raise ValueError(f"expected {_KINDS[kind]}, got {_KINDS.get(type(value), type(value))}")
    return value


def member(values: Any, name: str, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of a member that an object has to have. What it raises gets the name in front."""
    if name not in of_kind(dict, values):
        raise ValueError(f"'{name}' is missing")
    with blaming(name):
        return read(values[name])


def number(value: Any) -> float:
    """Of a whole number, too. Raises ValueError for what is none."""
    return float(value) if type(value) is int else of_kind(float, value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _no_number(literal: str) -> None:
    raise ValueError(f"{literal} is no number of JSON")


def _whole(literal: str) -> int:
    try:
        return int(literal)
    except ValueError:  # a guard of Python against numbers that take hours to read
        raise ValueError(f"a number of {len(literal)} digits is too long") from None


def _finite(literal: str) -> float:
    number = float(literal)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{literal} is beyond the largest number")
    return number
