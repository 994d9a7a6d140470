"""Files that appear whole or not at all, are held by one process at a time, and have the same bytes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The name of what is not ready yet: `.NAME-1a2b3c4d.mobizo`, a name of its own for each time.
_SCRATCH = r"\..+-[0-9a-f]{8}\.mobizo"
_swept: set[Path] = set()  # directories whose dead scratch this process has removed
# How a file system says that it has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to, which is on the disk and at `path` after the block.

    If anything is raised inside the block, or the disk is full, what was at `path` before stays there. The
    directory is created if need be. Two processes that write the same file do not meet: the last one wins.

    Raises:
        OSError: naming `path`, if it is no file or cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError(None, "it exists and is no file")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _swept:
            _swept.add(path.parent)
            remove_dead_scratch(path.parent)
        with scratch_file(path) as (scratch, _):
            yield scratch
            sync(scratch)
            os.replace(scratch, path)
        sync(path.parent)  # or a failure of the power could undo the renaming
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error})") from error


@contextmanager
def scratch_file(path: Path) -> Iterator[tuple[Path, int]]:
    """A new, empty file beside `path`, under a name of its own, and a descriptor of it.

    It is locked inside the block; after it, it is closed and, unless it was renamed, removed.
    """
    while True:
        scratch = _scratch_name(path.parent, path.name)
        descriptor = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            # Before it was locked, another process may have taken it for that of a dead one.
            if try_lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
                yield scratch, descriptor
                return
        finally:
            scratch.unlink(missing_ok=True)
            os.close(descriptor)


@contextmanager
def scratch_directory(parent: Path, name: str) -> Iterator[Path]:
    """A new directory in `parent`, which is locked inside the block and removed after it."""
    while True:
        scratch = _scratch_name(parent, name)
        scratch.mkdir()
        descriptor = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if try_lock(descriptor) is not False and scratch.exists():
                yield scratch
                return
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(descriptor)


def remove_dead_scratch(directory: Path, names: str = _SCRATCH) -> None:
    """Remove from `directory` what processes left there that were killed while they wrote to it.

    What is locked belongs to a living one and stays, and so does everything where there are no locks.

    Args:
        directory: need not exist.
        names: regular expression that the names match.
    """
    try:
        found = [Path(entry) for entry in os.scandir(directory) if re.fullmatch(names, entry.name)]
    except OSError:
        return
    for scratch in found:
        with suppress(OSError):
            descriptor = os.open(scratch, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if try_lock(descriptor):
                    shutil.rmtree(scratch, ignore_errors=True) if scratch.is_dir() else scratch.unlink()
            finally:
                os.close(descriptor)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file until it is closed, without waiting.

    Returns:
        False if it is locked under another descriptor, of this process or any other; None if the file system
        has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, under whatever names, or would once it is created."""
    try:
        return os.path.samestat(os.stat(one), os.stat(other))
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def sorted_metadata(content: bytes) -> bytes:
    """A safetensors file whose metadata are in the order of their names; the library's order is random."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def sync(path: Path) -> None:
    """Bring a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _scratch_name(parent: Path, name: str) -> Path:
    return parent / f".{name}-{secrets.token_hex(4)}.mobizo"
