"""A journal on the disk: made once, held by one run, and known to be still the file that the run opened."""

from __future__ import annotations

import errno
import os
import warnings
import weakref
from io import FileIO
from pathlib import Path

from mobizo_kernels.files.file import remove_dead_scratch, scratch_file, sync, try_lock

# How a file system says that it has no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class JournalLost(OSError):
    """A journal was removed, replaced or changed under the run that writes it, which cannot go on.

    Parameters and optimizer are those of the last recorded step: save the adapter.

    Attributes:
        result: what :meth:`mobizo_kernels.executorch.Trainer.train` would have returned; None in torch.
    """

    result: object = None


# A lock is shared with forked processes, such as the workers of a DataLoader: they would hold the journal for
# as long as they live, also if the run that made them was killed. So they let it go at once.
_held: weakref.WeakSet[JournalFile] = weakref.WeakSet()


def _let_go() -> None:
    for journal in list(_held):
        journal.close()


os.register_at_fork(after_in_child=_let_go)


class JournalFile:
    """An open journal, locked. Made by :meth:`create` or :meth:`open`."""

    def __init__(self, file: FileIO, path: Path) -> None:
        self.path, self._file = path, file
        self._place = path.absolute()  # whatever directory the process goes to
        _held.add(self)

    @classmethod
    def create(cls, path: Path, content: bytes) -> JournalFile:
        """Make a file that holds `content`; it appears at `path` whole and locked, or not at all.

        Raises:
            FileExistsError: if there is something at `path`, which stays as it is.
            OSError: if it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_dead_scratch(path.parent)
            with scratch_file(path) as (scratch, descriptor):
                write(descriptor, content, 0)
                os.fsync(descriptor)
                file = FileIO(os.dup(descriptor), "r+")  # a duplicate shares the lock
                try:
                    os.link(scratch, path)  # unlike a renaming, it fails if another run was faster
                except OSError as error:
                    file.close()
                    if error.errno not in _NO_LINKS:
                        raise
                    file = _created(path, content)
            sync(path.parent)
        except FileExistsError as error:
            if not os.path.lexists(path):
                raise OSError(f"{path} cannot be written ({error.strerror or error})") from error
            if path.is_symlink() and not path.exists():
                raise FileExistsError(f"journal {path} is a link that leads nowhere") from error
            raise FileExistsError(
                f"journal {path} exists already; name another file, or resume its run"
            ) from error
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error.strerror or error})") from error
        made = cls(file, path)
        made._warn_without_lock(try_lock(file.fileno()))
        return made

    @classmethod
    def open(cls, path: Path) -> JournalFile:
        """Open and lock a file.

        Raises:
            BlockingIOError: if another run holds it.
            OSError: if there is no file or it cannot be written.
        """
        remove_dead_scratch(path.parent)
        opened = cls(FileIO(path, "r+"), path)
        locked = try_lock(opened._file.fileno())
        if locked is False:
            opened._file.close()
            raise BlockingIOError(f"journal {path} is being written by another run, which holds it")
        opened._warn_without_lock(locked)
        return opened

    def read(self) -> bytes:
        """All of it."""
        self._file.seek(0)
        return self._file.readall()

    def check(self, size: int) -> None:
        """Raise JournalLost unless the file is still at its path and has `size` bytes."""
        mine = os.fstat(self._file.fileno())
        try:
            there = os.stat(self._place)
        except FileNotFoundError:
            there = None
        if there is not None and (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            what = "was replaced by another file"
        elif there is None or mine.st_nlink == 0:
            what = "was removed or renamed"
        elif mine.st_size != size:
            what = f"has {mine.st_size} bytes where {size} were written, so another program changed it,"
        else:
            return
        raise JournalLost(f"journal {self.path} {what} while the run was writing it")

    def write(self, data: bytes, offset: int) -> None:
        """`data` at `offset`."""
        write(self._file.fileno(), data, offset)

    def truncate(self, size: int) -> None:
        """Cut off what is behind `size` bytes."""
        self._file.truncate(size)

    def sync(self) -> None:
        """Bring it to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let the file go; a second call does nothing."""
        self._file.close()

    @property
    def closed(self) -> bool:
        """Whether it was let go."""
        return self._file.closed

    def _warn_without_lock(self, locked: bool | None) -> None:
        if locked is None:
            warnings.warn(
                f"journal {self.path} lies on a file system without locks: let no other run write it",
                stacklevel=5,
            )


def write(descriptor: int, data: bytes, offset: int) -> None:
    """All of `data` at `offset`: a write may be cut short where the next one would fail."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _created(path: Path, content: bytes) -> FileIO:
    """A new file with `content`, where there are no hard links: a crash may leave it there cut short."""
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "r+")
    try:
        try_lock(file.fileno())
        write(file.fileno(), content, 0)
        os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        file.close()
        raise
    return file
