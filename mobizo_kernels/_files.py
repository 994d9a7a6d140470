"""Files that appear whole or not at all, and have the same bytes each time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to, which is on the disk and at `path` after the block.

    If anything is raised inside the block, or the disk is full, what was at `path` before stays there. The
    directory is created if need be.

    Raises:
        OSError: naming `path`, if it is no file or cannot be written.
    """
    scratch = path.with_name(f".{path.name}.new")
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError(None, "it exists and is no file")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield scratch
            _sync(scratch)
            os.replace(scratch, path)
            _sync(path.parent)  # or a failure of the power could undo the renaming
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error})") from error


def sorted_metadata(content: bytes) -> bytes:
    """A safetensors file whose metadata are in the order of their names; the library's order is random."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
