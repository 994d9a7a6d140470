"""Labelled texts in a file of the user's own, read strictly: what could be meant otherwise is refused.

executorch_ops/trainer/text/{text_file,csv,rows}.cpp are the native twins: the same files, the same sentences.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mobizo_kernels.data.datasets import Example
from mobizo_kernels.errors import InputError, first_line, listed, refuse_half_characters, shortened
from mobizo_kernels.files import strict_json

Rows = Iterator[tuple[int, Mapping[str, Any]]]

_OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
}
_LARGEST_FIELD = 2**31 - 1  # of the csv module, which by itself stops at 131,072 characters
_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_KINDS = {list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}
_STRING = ("a string",)
_PLAIN = ("a string", "a number", "true or false")


def read_file(path: Path, text_column: str, label_column: str, columns: Sequence[str] = ()) -> list[Example]:
    """Read every row of a ``.csv`` or ``.jsonl`` file (UTF-8). White space around a text is dropped.

    CSV is that of RFC 4180: a cell with a comma, a quote or a line break in it stands in quotes, its own
    quotes doubled, and every row has the cells of the header. Lines of JSON are objects without a repeated
    name, NaN or infinity.

    Args:
        path: the file.
        text_column: the column (CSV) or name (JSON lines) of the text.
        label_column: the same for the label. A JSON label may be a string, and a number, true or false, which
            are taken as JSON writes them: the number 1 is the label "1".
        columns: further ones to keep, of the same kinds as a label.

    Raises:
        InputError: no such file, another kind of file, one that changes while it is read, a column that is
            missing, given twice, or both the label and part of the prompt, an empty or half text, or a row
            that breaks the rules above; rows are named by the line on which they begin.
    """
    rows = {".csv": _csv_rows, ".jsonl": _jsonl_rows}.get(path.suffix.lower())
    if rows is None:
        raise InputError(f"data: expected FILE.csv or FILE.jsonl or the name of a task, got {str(path)!r}")
    if label_column in (text_column, *columns):
        raise InputError(
            f"label_column: {label_column!r} is in the prompt too and would give the answer away"
        )
    wanted = (text_column, label_column, *columns)
    examples = []
    with _fields_of_any_length():
        for line, row in rows(_text(path), path, wanted):
            with blame_line(path, line):
                text = string_value(row[text_column], text_column, _STRING).strip()
                label = string_value(row[label_column], label_column, _PLAIN)
                more = ((column, string_value(row[column], column, _PLAIN).strip()) for column in columns)
                examples.append(Example(text, label, tuple(more)))
    if not examples:
        raise InputError(f"data: {path} has no rows")
    return examples


def json_objects(path: Path) -> Rows:
    """The objects of a ``.jsonl`` file, each with its line. Raises InputError as `read_file` does."""
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"data: expected FILE.jsonl, got {str(path)!r}")
    return _jsonl_rows(_text(path), path, ())


def _csv_rows(text: str, path: Path, wanted: Sequence[str]) -> Rows:
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    while (first := reader.line_num) < len(lines):
        with blame_line(path, first + 1):
            cells = _record(reader)
            if not cells:  # an empty line
                continue
            _check_quotes(cells, "".join(lines[first : reader.line_num]))
            if not header:
                header = cells
                _check_header(header, wanted)
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"has {len(cells)} and not the {len(header)} cells of the header; a text with commas "
                    "needs quotes"
                )
        yield first + 1, dict(zip(header, cells, strict=True))


def _record(reader: Iterator[list[str]]) -> list[str]:
    """The next record of a csv.reader, [] for an empty line."""
    try:
        return next(reader, [])
    except csv.Error as error:
        raise ValueError(
            "begins a cell with a quote that no quote before a comma or a line's end closes; quotes within a "
            f"text are doubled ({first_line(error)})"
        ) from error


def _check_quotes(cells: Sequence[str], record: str) -> None:
    """Raise ValueError if a quote is in a cell without quotes around it, which csv.reader lets pass."""
    for cell in cells:
        if '"' in cell and '"' + cell.replace('"', '""') + '"' not in record:
            raise ValueError(
                f"has a quote in the cell {shortened(cell)}; it needs quotes around it and its own doubled"
            )


def _check_header(header: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in header:
            raise ValueError(f"has no column {column!r}, only {listed(header)}")
        if header.count(column) > 1:
            raise ValueError(f"has {header.count(column)} columns {column!r}, expected one")


def _jsonl_rows(text: str, path: Path, wanted: Sequence[str]) -> Rows:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        with blame_line(path, number):
            try:
                row = strict_json.loads_as_native(line.rstrip("\n").encode())
            except ValueError as error:
                raise ValueError(f"is not JSON ({first_line(error)})") from error
            if not isinstance(row, dict):
                raise ValueError(f"is no JSON object, but {shortened(line.strip())}")
            for column in wanted:
                if column not in row:
                    raise ValueError(f"has no column {column!r}, only {listed(row)}")
        yield number, row


def string_value(value: Any, column: str, expected: Sequence[str]) -> str:
    """A value as text. Raises ValueError if it is of no `expected` kind or has nothing to read."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    kind = _KINDS.get(type(value), "a string")
    if kind not in expected:
        raise ValueError(f"has {kind} for {column!r}, expected {' or '.join(expected)}")
    if all(unicodedata.category(character) in _INVISIBLE for character in text):
        raise ValueError(f"has an empty {column!r}")
    refuse_half_characters(text)
    return text


def _text(path: Path) -> str:
    """All of a file. Raises InputError, naming the line where it has one."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            got = "a directory" if stat.S_ISDIR(kind) else "a pipe or device"
            raise InputError(f"data: expected a file, and {str(path)!r} is {got}")
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            content = file.read()
            after = os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise InputError(f"data: there is no file {str(path)!r}") from error
    except OSError as error:
        raise InputError(f"data: {path} cannot be read ({error.strerror or error})") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InputError(f"data: {path} changed while it was read")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = _format(content) or f"has the byte 0x{error.object[error.start]:02x} on line {line}"
        raise InputError(f"data: {path} {found}, expected text in UTF-8") from error
    if (at := text.find("\0")) >= 0:
        found = _format(content) or f"has a zero byte on line {text[:at].count(chr(10)) + 1}"
        raise InputError(f"data: {path} {found}, expected text in UTF-8")
    return text


def _format(content: bytes) -> str:
    """ "is UTF-16" and the like, empty if nothing is known."""
    return next((f"is {name}" for start, name in _OTHER_FORMATS.items() if content.startswith(start)), "")


@contextmanager
def blame_line(path: Path, line: int) -> Iterator[None]:
    """Turn a ValueError, whose text goes on after "line 5", into an InputError."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"data: {path} line {line} {first_line(error)}") from error


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    before = csv.field_size_limit(_LARGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
