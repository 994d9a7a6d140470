"""What coordinator and participants send each other, byte by byte; docs/federated.md has the same as tables.

All numbers are little endian. Every payload begins with "MZ", its kind and the version, and ends with a crc32
of what is before.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import ClassVar

import torch

from mobizo_kernels.journal.header import VERSION as JOURNAL_VERSION
from mobizo_kernels.optim.records import Records, parse_records, record_layout

VERSION = 1

_MAGIC = b"MZ"
_PREFIX = struct.Struct("<2sBB")
_CRC = struct.Struct("<I")
_HEAD = 8  # bytes
_MOST_TEXT = 400  # bytes of a reason, which a log shows


class PayloadError(ValueError):
    """A payload is damaged, of another version, or not what is expected now. Nothing was changed by it."""


class Kind(IntEnum):
    """What a payload is."""

    ASK = 1  # what is the loss of step n? with the records up to it
    ANSWER = 2
    UPDATE = 3  # the records, without a question
    STATE = 4  # the reply
    JOIN = 5  # who are you?
    JOINED = 6
    REFUSAL = 7


def first_head(header: bytes) -> bytes:
    """The head of a run without steps, from the header of its journal."""
    return blake2b(header, digest_size=_HEAD).digest()


def next_head(head: bytes, record: bytes) -> bytes:
    """The head after one more record: equal heads are equal headers and equal records, so equal adapters."""
    return blake2b(head + record, digest_size=_HEAD).digest()


def record_size(queries: int) -> int:
    """Bytes of a record of q coefficients: 28 + 4q."""
    return record_layout(JOURNAL_VERSION, queries).itemsize


def decode_records(content: bytes, first: int, queries: int) -> Records:
    """Records of q coefficients, the first being that of step `first`. Raises PayloadError for any damage."""
    try:
        records, end = parse_records(content, 0, JOURNAL_VERSION, queries, first)
    except ValueError as error:
        raise PayloadError(str(error)) from error
    if end != len(content):
        raise PayloadError(f"the record of step {first + len(records)} is damaged")
    numbers = torch.cat([records.coeffs, records.rates[:, None], records.decays[:, None]], 1)
    if not numbers.isfinite().all():
        step = first + int((~numbers.isfinite().all(1)).nonzero()[0])
        raise PayloadError(f"the record of step {step} has numbers that are not finite")
    return records


def kind_of(payload: bytes) -> Kind:
    """What a payload is. Raises PayloadError if it is none, of another version, or damaged."""
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise PayloadError(f"it is no payload: expected bytes, got {type(payload).__name__}")
    if len(payload) < _PREFIX.size + _CRC.size or payload[:2] != _MAGIC:
        raise PayloadError(f"it is no payload: expected {_MAGIC!r} at its start, got {payload[:4]!r}")
    _, kind, version = _PREFIX.unpack_from(payload)
    if version != VERSION:
        raise PayloadError(f"expected version {VERSION} of the payload, got {version}")
    if zlib.crc32(payload[: -_CRC.size]) != _CRC.unpack(payload[-_CRC.size :])[0]:
        raise PayloadError("it is damaged: its checksum is another one")
    try:
        return Kind(kind)
    except ValueError:
        raise PayloadError(f"expected a kind from 1 to {max(Kind)}, got {kind}") from None


def _framed(kind: Kind, body: bytes = b"") -> bytes:
    content = _PREFIX.pack(_MAGIC, kind, VERSION) + body
    return content + _CRC.pack(zlib.crc32(content))


def _body(payload: bytes, kinds: tuple[Kind, ...], fixed: struct.Struct) -> tuple[Kind, bytes, bytes]:
    """The kind, the fixed part and what follows it."""
    kind = kind_of(payload)
    if kind not in kinds:
        raise PayloadError(f"expected {' or '.join(one.name for one in kinds)}, got {kind.name}")
    body = payload[_PREFIX.size : -_CRC.size]
    if len(body) < fixed.size:
        raise PayloadError(f"{kind.name} needs {fixed.size} bytes at least, got {len(body)}")
    return kind, body[: fixed.size], body[fixed.size :]


@dataclass(frozen=True)
class Request:
    """Records that the participant lacks and, unless it is a mere update, the question for the next losses.

    28 + n (28 + 4q) bytes for n records; one in a round that follows the one before.

    Attributes:
        step: of the journal when these records are applied: the number of the round.
        head: after them.
        first: number of the first record.
        queries: q.
        records: as they lie in the journal, those of the steps from `first` to `step` - 1.
        asks: for the losses of step `step`.
    """

    _FIXED: ClassVar[struct.Struct] = struct.Struct("<I8sII")

    step: int
    head: bytes
    first: int
    queries: int
    records: bytes
    asks: bool = True

    def encode(self) -> bytes:
        """The payload."""
        fixed = self._FIXED.pack(self.step, self.head, self.first, self.queries)
        return _framed(Kind.ASK if self.asks else Kind.UPDATE, fixed + self.records)

    @classmethod
    def decode(cls, payload: bytes) -> Request:
        """From a payload. Raises PayloadError unless it is one that holds as many records as it says."""
        kind, fixed, records = _body(payload, (Kind.ASK, Kind.UPDATE), cls._FIXED)
        step, head, first, queries = cls._FIXED.unpack(fixed)
        expected = (step - first) * (28 + 4 * queries)
        if queries < 1 or first > step or len(records) != expected:
            raise PayloadError(
                f"expected the records of steps {first} to {step} with {queries} coefficients, {expected} "
                f"bytes, got {len(records)}"
            )
        return cls(step, head, first, queries, records, kind == Kind.ASK)


@dataclass(frozen=True)
class Answer:
    """The scalars of one participant: 28 + 4n bytes.

    Attributes:
        step: that they are of.
        head: of the participant's model: which run, and which records it has.
        loss: of the participant's rows before the update.
        weight: labelled tokens that the mean was taken over, or rows.
        numbers: q projected gradients; with `normalize`, whose spread is one of all rows, the G losses.
    """

    _FIXED: ClassVar[struct.Struct] = struct.Struct("<I8sfI")

    step: int
    head: bytes
    loss: float
    weight: int
    numbers: tuple[float, ...]

    def encode(self) -> bytes:
        """The payload; numbers are rounded to float32."""
        fixed = self._FIXED.pack(self.step, self.head, self.loss, self.weight)
        return _framed(Kind.ANSWER, fixed + struct.pack(f"<{len(self.numbers)}f", *self.numbers))

    @classmethod
    def decode(cls, payload: bytes) -> Answer:
        """From a payload. Raises PayloadError unless it is one."""
        _, fixed, rest = _body(payload, (Kind.ANSWER,), cls._FIXED)
        if len(rest) % 4:
            raise PayloadError(f"expected numbers of 4 bytes, got {len(rest)} bytes")
        step, head, loss, weight = cls._FIXED.unpack(fixed)
        return cls(step, head, loss, weight, struct.unpack(f"<{len(rest) // 4}f", rest))


@dataclass(frozen=True)
class State:
    """Where a participant is: the reply to an update, 20 bytes, and to a question who it is.

    Attributes:
        steps: that it has.
        head: after them.
        header: of its run, as a journal has it; empty in the reply to an update.
    """

    _FIXED: ClassVar[struct.Struct] = struct.Struct("<I8s")

    steps: int
    head: bytes
    header: bytes = b""

    def encode(self) -> bytes:
        """The payload."""
        kind = Kind.JOINED if self.header else Kind.STATE
        return _framed(kind, self._FIXED.pack(self.steps, self.head) + self.header)

    @classmethod
    def decode(cls, payload: bytes) -> State:
        """From a payload. Raises PayloadError unless it is one."""
        _, fixed, header = _body(payload, (Kind.STATE, Kind.JOINED), cls._FIXED)
        steps, head = cls._FIXED.unpack(fixed)
        return cls(steps, head, header)


@dataclass(frozen=True)
class Refusal:
    """Why a participant does not answer.

    Attributes:
        steps: that it has; if the records began behind them, it lacks those from this one on.
        reason: one sentence.
    """

    _FIXED: ClassVar[struct.Struct] = struct.Struct("<I")

    steps: int
    reason: str

    def encode(self) -> bytes:
        """The payload; a long reason is cut."""
        return _framed(
            Kind.REFUSAL, self._FIXED.pack(self.steps) + self.reason.encode(errors="replace")[:_MOST_TEXT]
        )

    @classmethod
    def decode(cls, payload: bytes) -> Refusal:
        """From a payload. Raises PayloadError unless it is one."""
        _, fixed, text = _body(payload, (Kind.REFUSAL,), cls._FIXED)
        (steps,) = cls._FIXED.unpack(fixed)
        return cls(steps, text[:_MOST_TEXT].decode(errors="replace"))


def join() -> bytes:
    """The question who a participant is: 8 bytes."""
    return _framed(Kind.JOIN)


def heads_of(header: bytes, records: Sequence[bytes]) -> list[bytes]:
    """The heads of a run after 0, 1, ... steps."""
    heads = [first_head(header)]
    for record in records:
        heads.append(next_head(heads[-1], record))
    return heads


def split_records(content: bytes, queries: int) -> list[bytes]:
    """Whole records one by one."""
    size = record_size(queries)
    return [content[at : at + size] for at in range(0, len(content), size)]
