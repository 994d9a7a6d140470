"""The journal of a run: its settings and, for each step, the scalars that made the update.

With the seeds, which follow from the run's seed, that is the whole run: replaying the file from the initial
adapter gives the trained one bit for bit, on any backend. docs/formats.md describes the file byte by byte;
the native trainer writes the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from types import TracebackType

import torch

from mobizo_kernels._files import written_whole
from mobizo_kernels.zo.records import Records, StepRecord, parse_records, to_bytes
from mobizo_kernels.zo.rules import UpdateRule

MAGIC = b"MOBIZOJN"
VERSION = 2

_PREFIX = struct.Struct("<8sII")  # magic, version, bytes of the JSON
_CRC = struct.Struct("<I")

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class JournalParameter:
    """A tuned parameter: its name in the un-wrapped model, its shape, and the stream of its noise."""

    name: str
    shape: tuple[int, ...]
    stream: int


@dataclass(frozen=True)
class JournalHeader:
    """What a run is, in the order of the file. None stands for what the run's loop did not say.

    Attributes:
        run_seed: as a signed 64-bit integer.
        queries: q, coefficients in each record.
        eps: size of a perturbation.
        lr: learning rate before the schedule.
        lr_schedule: "constant", "linear" or "cosine".
        steps: planned for the run; the schedule spans them.
        normalize: differences are divided by the spread of the losses, not by eps.
        distribution: "gaussian" or "rademacher".
        estimator: "two_sided" or "one_sided".
        optimizer: what a step makes of its estimate.
        batch_size: rows in each step.
        base_fingerprint: :func:`mobizo_kernels.lora.model_fingerprint` of the model.
        data: a hash of the training rows.
        parameters: in the order of the model.
    """

    run_seed: int
    queries: int
    eps: float
    lr: float
    lr_schedule: str | None
    steps: int | None
    normalize: bool
    distribution: str
    estimator: str
    optimizer: UpdateRule
    batch_size: int | None
    base_fingerprint: str | None
    data: str | None
    parameters: tuple[JournalParameter, ...]

    def to_bytes(self) -> bytes:
        """The head of the file, checksum included."""
        values = {**asdict(self), "optimizer": self.optimizer.as_json()}
        text = json.dumps(values, allow_nan=False).encode()
        head = _PREFIX.pack(MAGIC, VERSION, len(text)) + text
        return head + _CRC.pack(zlib.crc32(head))

    def check_same(self, other: JournalHeader, path: PathLike) -> None:
        """Raise ValueError, naming the first field that differs, unless `other`, of a run, is the same."""
        for field in fields(self):
            there, here = getattr(self, field.name), getattr(other, field.name)
            if there == here:
                continue
            if field.name == "parameters":
                there, here = first_difference(there, here)
            if field.name == "optimizer":
                there, here = there.as_json(), here.as_json()
            raise ValueError(f"journal {path}: {field.name} is {there!r} there, but {here!r} in this run")


class JournalWriter:
    """Appends records to a journal; a context manager. Made by :meth:`create` or :meth:`resume`.

    Attributes:
        path: of the file.
        steps: records in it, so also the number of the next step.
    """

    def __init__(
        self, file: FileIO, path: Path, queries: int, *, steps: int, size: int, sync_every: int
    ) -> None:
        self.path, self.steps = path, steps
        self._file, self._queries, self._size, self._sync_every = file, queries, size, sync_every

    @classmethod
    def create(cls, path: PathLike, header: JournalHeader, *, sync_every: int = 1) -> JournalWriter:
        """Start a journal without records.

        Args:
            path: must not exist; its directory is created if need be. The file appears there with its whole
                header or not at all.
            header: of the run.
            sync_every: steps between two fsync: most steps that a failure of the power can cost.

        Raises:
            FileExistsError: if there is a file already.
            OSError: if it cannot be written.
            ValueError: if `sync_every` is below 1.
        """
        path = Path(path)
        _check_sync(sync_every)
        if path.exists():
            raise FileExistsError(f"journal {path} exists already; name another file, or resume its run")
        with written_whole(path) as scratch:
            file = FileIO(scratch, "w+")
            _write(file, head := header.to_bytes(), 0)
        return cls(file, path, header.queries, steps=0, size=len(head), sync_every=sync_every)

    @classmethod
    def resume(
        cls, path: PathLike, header: JournalHeader, *, sync_every: int = 1
    ) -> tuple[JournalWriter, Records]:
        """Go on with a journal; a torn last record is cut off.

        Args:
            path: of a journal.
            header: what this run would write.
            sync_every: as for :meth:`create`.

        Returns:
            The writer, and the steps recorded so far.

        Raises:
            OSError: if there is no file or it cannot be written.
            ValueError: if the file is no journal, damaged, or of the first version, or if its header differs
                from `header`; it names the field then. The file is left as it was.
        """
        path = Path(path)
        _check_sync(sync_every)
        there, records, size, version = _read(path)
        if version != VERSION:
            raise ValueError(
                f"journal {path}: version {version} of the format can be replayed, but not gone on with"
            )
        there.check_same(header, path)
        file = FileIO(path, "r+")
        file.truncate(size)
        steps = len(records)
        return cls(file, path, there.queries, steps=steps, size=size, sync_every=sync_every), records

    def append(self, step: int, record: StepRecord) -> None:
        """Record one step.

        Args:
            step: must be :attr:`steps`.
            record: exactly what the update is about to take, `coeffs` float32 [q].

        Raises:
            ValueError: if the step is not the next one, or `coeffs` is of another shape or dtype.
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
            _write(self._file, content, self._size)
            if (step + 1) % self._sync_every == 0:
                os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise OSError(
                error.errno, f"step {step} cannot be recorded ({error.strerror})", str(self.path)
            ) from error
        self.steps += 1
        self._size += len(content)

    def close(self) -> None:
        """Bring everything to the disk and close the file; a second call does nothing."""
        if not self._file.closed:
            with self._file:
                os.fsync(self._file.fileno())

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: PathLike) -> tuple[JournalHeader, Records]:
    """Header and records of a journal, of this version of the format or the first. A torn last record is
    ignored.

    Raises:
        OSError: if the file cannot be read.
        ValueError: naming the file and, for damage before the last record, the step.
    """
    return _read(Path(path))[:2]


def _read(path: Path) -> tuple[JournalHeader, Records, int, int]:
    """Header, records, the bytes up to the end of the last whole record, and the version."""
    content = path.read_bytes()
    header, start, version = _parse_header(content, path)
    try:
        records, size = parse_records(content, start, version, header.queries)
    except ValueError as error:
        raise ValueError(f"journal {path}: {error}") from error
    return header, records, size, version


def _parse_header(content: bytes, path: Path) -> tuple[JournalHeader, int, int]:
    """The header, where the records begin, and the version."""
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{path} is no journal: expected {MAGIC!r} at its start, got {content[:8]!r}")
    try:
        _, version, size = _PREFIX.unpack_from(content)
        if not 1 <= version <= VERSION:
            raise ValueError(f"journal {path}: expected version 1 or {VERSION} of the format, got {version}")
        end = _PREFIX.size + size
        (crc,) = _CRC.unpack_from(content, end)
    except struct.error as error:
        raise ValueError(f"journal {path}: its header is cut short") from error
    if zlib.crc32(content[:end]) != crc:
        raise ValueError(f"journal {path}: its header is damaged")
    try:
        values = json.loads(content[_PREFIX.size : end])
        parameters = tuple(
            JournalParameter(p["name"], tuple(p["shape"]), p["stream"]) for p in values.pop("parameters")
        )
        # The first version knew plain SGD only.
        rule = UpdateRule() if version == 1 else UpdateRule.from_json(values.pop("optimizer"))
        header = JournalHeader(**values, optimizer=rule, parameters=parameters)
        if header.queries < 1:
            raise ValueError(f"queries is {header.queries}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"journal {path}: its header cannot be understood ({error})") from error
    return header, end + _CRC.size, version


def first_difference(
    there: tuple[JournalParameter, ...], here: tuple[JournalParameter, ...]
) -> tuple[JournalParameter | None, JournalParameter | None]:
    """The first pair of two unequal lists that differs; None stands for a parameter that one side lacks."""
    longest = max(len(there), len(here))
    padded = [(*parameters, *[None] * (longest - len(parameters))) for parameters in (there, here)]
    return next((a, b) for a, b in zip(*padded, strict=True) if a != b)


def _check_sync(sync_every: int) -> None:
    if sync_every < 1:
        raise ValueError(f"sync_every must be at least 1, got {sync_every}")


def _write(file: FileIO, data: bytes, offset: int) -> None:
    """All of `data` at `offset`: a write may be cut short where the next one would fail."""
    while data:
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written
