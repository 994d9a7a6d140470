"""One verdict for one file: whatever is changed in it, Python's reader and the native one take it or refuse
it alike, and say the same of what they read.

    python tests/support/differential.py --seconds 600 [--kinds journal rows] [--seed 5]
    python tests/support/differential.py --files 5000 --seed 1    # the same files on every machine

Each file is made by the number of its try, which a failure names. Exit code 1 if the readers disagree.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import seed_files
from seed_files import Files

from mobizo_kernels.data import read_dataset
from mobizo_kernels.data.conversations import read_conversations
from mobizo_kernels.data.files import read_file
from mobizo_kernels.executorch._library import load_trainer
from mobizo_kernels.executorch.description import parse_description
from mobizo_kernels.files.safetensors import read_safetensors
from mobizo_kernels.journal import read_journal

Change = Callable[[bytes, random.Random], bytes]
Reader = Callable[[Path], Any]

# What stands in JSON, and what does not.
PIECES = [
    *(bytes([byte]) for byte in b'"\\{}[]:,-+.eE0189 \t\n\r\0\x1f\x7f\x80\xc3\xff'),
    *(b"null", b"true", b"NaN", b"1e400", b"-0", b"01", b"1.0", b"1e2", b"9223372036854775808", b'"a":1,'),
    *(b"1e-400", b"5e-324", b"-1.5E+3", b"9223372036854775807", b"-9223372036854775808", b"1" * 400),
    *(
        b"\\ud800",
        b"\\u0041",
        b"\\ud83d\\ude00",
        b"\xc3\xa9",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"[]",
        b"{}",
    ),
    *(character.encode() for character in "\u2028\u0085\ufeff\u00a0\u200b\x1c\x0b\x0c"),
]
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        2**31 - 1,
        2**63 - 1,
        -(2**63),
        2**63,
        0.5,
        -0.0,
        1.0,
        1e308,
        5e-324,
    ),
    *("", "a", " ", "\u200b", "\u00e9", "\U0001f600", "\ud800", [], {}, [None], {"a": 1}, "1" * 300),
]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A few bytes or pieces changed, moved, doubled or left out."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(content) + 1)
        size = rng.choice((0, 1, 1, 2, 8, 40))
        again = content[at : at + 2 * size]
        new = rng.choice((b"", rng.choice(PIECES), rng.choice(PIECES), rng.randbytes(1), again))
        content = content[:at] + new + content[at + size :]
    return content


def changed_json(content: bytes, rng: random.Random) -> bytes:
    """A value replaced, left out, doubled or renamed; else as `damaged`."""
    try:
        value = json.loads(content)
    except ValueError:
        return damaged(content, rng)
    if rng.random() < 0.3:
        return damaged(content, rng)
    for _ in range(rng.choice((1, 1, 2))):
        nodes = list(_nodes(value))
        if not nodes:
            break
        _change(*rng.choice(nodes), rng, nodes)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Containers, each with a name or an index in it."""
    for key in (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from _nodes(value[key])


def _change(inside: Any, key: Any, rng: random.Random, nodes: list[tuple[Any, Any]]) -> None:
    other, place = rng.choice(nodes)
    donor = json.loads(json.dumps(other[place]))  # a copy
    match rng.randrange(5):
        case 0:
            inside[key] = rng.choice(VALUES)
        case 1:
            inside[key] = donor
        case 2:
            del inside[key]
        case 3 if isinstance(inside, dict):
            inside[rng.choice(("more", key + " ", "", str(place)))] = inside.pop(key)
        case 4 if isinstance(inside[key], int):
            inside[key] += rng.choice((-1, 1, 2**32, 0.5))
        case _ if isinstance(inside, list):
            inside.insert(key, donor)


def changed_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Its header or its data; mostly with the right length, and a checksum made right or left out."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = rng.random()
    if kind < 0.1:
        return damaged(content, rng)
    if kind < 0.4 and data:
        at = 4 * rng.randrange(len(data) // 4)
        word = rng.choice((0, 1, -1, 5, 9, 2, 60, 61, 2**31 - 1))
        data = data[:at] + struct.pack("<i", word) + data[at + 4 :]
    else:
        header = changed_json(header, rng)
    try:
        values = json.loads(header)
        if rng.random() < 0.9:
            del values["__metadata__"]["checksum"]
            header = json.dumps(values).encode()
    except (ValueError, KeyError, TypeError):
        pass
    return len(header).to_bytes(8, "little") + header + data


def changed_journal(content: bytes, rng: random.Random) -> bytes:
    """Its header, with the checksum made right, or its records."""
    version, size = struct.unpack_from("<II", content, 8)
    header, body = content[16 : 16 + size], content[20 + size :]
    kind = rng.random()
    if kind < 0.1:
        return damaged(content, rng)
    if kind < 0.3:
        body = damaged(body, rng) if kind < 0.2 else body[: rng.randrange(len(body) + 1)]
    else:
        header = changed_json(header, rng)
    return seed_files.journal_of(rng.randrange(5) if kind > 0.9 else version, header, body)


def changed_lines(content: bytes, rng: random.Random) -> bytes:
    """A line as JSON, or any bytes."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.3 or not lines[at].startswith(b"{"):
        return damaged(content, rng)
    lines[at] = changed_json(lines[at], rng)
    return rng.choice((b"\n", b"\n", b"\r\n", b"\r")).join(lines)


@dataclass(frozen=True)
class Kind:
    """Files, what is changed in them, and two readers.

    Attributes:
        files: to begin with.
        change: makes another file of one.
        python: Python's reader.
        native: the native one, which returns the same.
        same: whether sentences are the same, too.
    """

    files: Files
    change: Change
    python: Reader
    native: Reader
    same: bool = False


def kinds() -> dict[str, Kind]:
    native = load_trainer()
    columns = ("text", "label", ["title"])

    def info(path: Path) -> None:
        native.file_info(path)

    def dataset(path: Path) -> None:
        _, tensors = read_safetensors(path)
        if any(f"{split}.tokens" in tensors for split in ("train", "validation", "test")):
            read_dataset(path)

    def examples(path: Path) -> Any:
        return [(row.text, row.label, list(row.columns)) for row in read_file(path, *columns)]

    def conversations(path: Path) -> Any:
        return [(list(row.messages), row.where) for row in read_conversations(path)]

    def journal(path: Path) -> None:
        read_journal(path)

    def description(path: Path) -> None:
        parse_description(path.read_bytes().decode())

    def native_description(path: Path) -> None:
        native.check_description(path.read_bytes())

    def native_examples(path: Path) -> Any:
        return native.read_examples(str(path), *columns)

    def native_conversations(path: Path) -> Any:
        return native.read_conversations(str(path))

    def rows(names: str) -> Files:
        return {name: content for name, content in seed_files.rows().items() if name[0] in names}

    return {
        "data set": Kind(seed_files.datasets(), changed_safetensors, dataset, info),
        "adapter": Kind(seed_files.adapters(), changed_safetensors, dataset, info),
        "journal": Kind(seed_files.journals(), changed_journal, journal, info),
        "description": Kind(seed_files.descriptions(), changed_json, description, native_description),
        "csv": Kind(rows("st"), damaged, examples, native_examples, same=True),
        "jsonl": Kind(rows("jk"), changed_lines, examples, native_examples),
        "conversations": Kind(rows("c"), changed_lines, conversations, native_conversations),
    }


def outcome(reader: Reader, path: Path) -> tuple[bool, Any]:
    """True and what the file holds, or False and the sentence that refuses it."""
    try:
        return True, reader(path)
    except ValueError as error:
        return False, str(error)


def attempt(kind: Kind, seed: int, folder: Path) -> bool:
    """Reads the file of this number. Whether it was taken. AssertionError if the readers disagree."""
    rng = random.Random(seed)
    name = rng.choice(sorted(kind.files))
    path = folder / name
    path.write_bytes(kind.change(kind.files[name], rng))
    python, native = outcome(kind.python, path), outcome(kind.native, path)
    agree = python == native if python[0] or kind.same else python[0] == native[0]
    assert agree, f"seed {seed}: {name}: {path.read_bytes()!r}\nPython: {python}\nnative: {native}"
    return python[0]


def compared(name: str, *, first: int, files: int | None, seconds: float) -> tuple[bool, str]:
    """Files of one kind by their numbers from `first` on, so many, or for so long; whether the readers agree
    about all of them, and what to say of it.
    """
    kind, seed, taken, told, agree = kinds()[name], first, 0, "", True
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        try:
            while time.monotonic() < end if files is None else seed < first + files:
                taken += attempt(kind, seed, Path(folder))
                seed += 1
        except AssertionError as error:
            told, agree = f"{name}: the readers disagree: {error}\n", False
    told += f"{name}: {seed - first} files from seed {first} on, {taken} of them taken by both readers"
    return agree, told


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Python's readers against the native ones.")
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--seconds", type=float, default=10, help="for each kind of file")
    until.add_argument("--files", type=int, help="of each kind, however long they take")
    parser.add_argument("--kinds", nargs="+", help="of files; all of them")
    parser.add_argument("--seed", type=int, help="of the first file; by chance")
    options = parser.parse_args(arguments)
    first = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    names = [name for name in kinds() if not options.kinds or name in options.kinds]
    agree = True
    with ProcessPoolExecutor() as pool:
        compare = partial(compared, first=first, files=options.files, seconds=options.seconds)
        for agreed, told in pool.map(compare, names):
            agree &= agreed
            print(told, flush=True)
    return not agree


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
