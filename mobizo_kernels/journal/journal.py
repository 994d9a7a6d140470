"""The journal of a run: its settings and, for each step, the scalars that made the update.

With the seeds, which follow from the run's seed, that is the whole run: replaying the file from the initial
adapter gives the trained one bit for bit, on any backend. docs/formats.md describes the file byte by byte;
the native trainer writes the same.
"""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from types import TracebackType

import torch

from mobizo_kernels.journal.file import JournalFile, JournalLost
from mobizo_kernels.journal.header import VERSION, JournalHeader, PathLike, parse_header
from mobizo_kernels.optim.records import Records, StepRecord, parse_records, record_layout, to_bytes


class JournalWriter:
    """Appends records to a journal; a context manager. Made by :meth:`create` or :meth:`resume`.

    While it is open no other run can write the file, of this process or another one.

    Attributes:
        path: of the file.
        steps: records in it, so also the number of the next step.
    """

    def __init__(self, file: JournalFile, queries: int, *, steps: int, size: int) -> None:
        self.path, self.steps = file.path, steps
        self._file, self._queries, self._size = file, queries, size

    @classmethod
    def create(cls, path: PathLike, header: JournalHeader) -> JournalWriter:
        """Start a journal without records.

        Args:
            path: must not exist; its directory is created if need be. The file appears there with its whole
                header or not at all.
            header: of the run.

        Raises:
            FileExistsError: if there is a file already.
            OSError: if it cannot be written.
        """
        file = JournalFile.create(Path(path), head := header.to_bytes())
        return cls(file, header.queries, steps=0, size=len(head))

    @classmethod
    def resume(cls, path: PathLike, header: JournalHeader) -> tuple[JournalWriter, Records]:
        """Go on with a journal. A last record that was cut short is cut off; so is one that is damaged, with
        a warning, and its step is made again.

        Args:
            path: of a journal.
            header: what this run would write.

        Returns:
            The writer, and the steps recorded so far.

        Raises:
            BlockingIOError: if another run holds the file.
            OSError: if there is no file or it cannot be written.
            ValueError: if the file is no journal, damaged, or of an earlier version, or if its header differs
                from `header`; it names the field then. The file is left as it was.
        """
        file = JournalFile.open(Path(path))
        try:
            there, records, size, version = _parse(content := file.read(), file.path, drop_last=True)
            if version != VERSION:
                raise ValueError(
                    f"journal {path}: version {version} of the format can be replayed, but not gone on with"
                )
            there.check_same(header, path)
            if len(content) - size == record_layout(version, there.queries).itemsize:
                warnings.warn(
                    f"journal {path}: the record of step {len(records)}, the last one, is damaged; it is "
                    "dropped, and the step is made again",
                    stacklevel=2,
                )
            file.truncate(size)
        except BaseException:
            file.close()
            raise
        return cls(file, there.queries, steps=len(records), size=size), records

    def append(self, step: int, record: StepRecord) -> None:
        """Record one step, on the disk when this returns.

        Args:
            step: must be :attr:`steps`.
            record: exactly what the update is about to take, `coeffs` float32 [q].

        Raises:
            ValueError: if the step is not the next one, or `coeffs` is of another shape or dtype.
            JournalLost: if the file was removed, replaced or changed since the last record.
            OSError: naming file and step, if the record cannot be written. The journal then ends before it,
                and the step can be recorded again.
        """
        if step != self.steps:
            raise ValueError(f"journal {self.path}: expected a record of step {self.steps}, got step {step}")
        coeffs = record.coeffs
        if coeffs.shape != (self._queries,) or coeffs.dtype != torch.float32:
            raise ValueError(
                f"coeffs must be float32 [{self._queries}], got {coeffs.dtype} {list(coeffs.shape)}"
            )
        content = to_bytes(step, record, VERSION)
        try:
            self._file.check(self._size)
            self._file.write(content, self._size)
            self._file.sync()
        except JournalLost:
            raise
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise OSError(
                error.errno, f"step {step} cannot be recorded ({error.strerror})", str(self.path)
            ) from error
        self.steps += 1
        self._size += len(content)

    def sync(self) -> None:
        """Bring everything to the disk. Raises JournalLost as :meth:`append`, OSError if the disk fails."""
        self._file.check(self._size)
        self._file.sync()

    def close(self) -> None:
        """Bring everything to the disk and let the file go; a second call does nothing."""
        if not self._file.closed:
            with contextlib.closing(self._file):
                self._file.sync()

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: PathLike) -> tuple[JournalHeader, Records]:
    """Header and records of a journal, of this version of the format or an earlier one. A last record that
    was cut short is ignored.

    Raises:
        OSError: if the file cannot be read.
        ValueError: naming the file and, for a damaged record, the step.
    """
    path = Path(path)
    return _parse(path.read_bytes(), path)[:2]


def _parse(content: bytes, path: Path, *, drop_last: bool = False) -> tuple[JournalHeader, Records, int, int]:
    """Header, records, the bytes up to the end of the last of them, and the version."""
    header, start, version = parse_header(content, path)
    try:
        records, size = parse_records(content, start, version, header.queries, drop_last=drop_last)
    except ValueError as error:
        raise ValueError(f"journal {path}: {error}") from error
    return header, records, size, version
