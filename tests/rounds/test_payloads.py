"""The bytes of the payloads against docs/federated.md, written out by hand, and all that is refused."""

from __future__ import annotations

import contextlib
import struct
import zlib
from hashlib import blake2b

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobizo_kernels.optim import StepRecord
from mobizo_kernels.optim.records import to_bytes
from mobizo_kernels.rounds import PayloadError
from mobizo_kernels.rounds.payloads import (
    Answer,
    Kind,
    Refusal,
    Request,
    State,
    decode_records,
    first_head,
    join,
    kind_of,
    next_head,
)

HEAD = bytes(range(8))


def framed(kind: int, body: bytes, version: int = 1, magic: bytes = b"MZ") -> bytes:
    content = magic + bytes([kind, version]) + body
    return content + struct.pack("<I", zlib.crc32(content))


def record(step: int, *coeffs: float, applied: bool = True) -> bytes:
    return to_bytes(step, StepRecord(torch.tensor(coeffs), rate=0.5, loss=2.0, applied=applied), 3)


def test_the_bytes_of_each_kind() -> None:
    records = record(3, 1.5, -2.0) + record(4, 0.0, 0.0, applied=False)
    assert len(records) == 2 * (28 + 4 * 2)
    request = Request(5, HEAD, 3, 2, records)
    body = struct.pack("<I8sII", 5, HEAD, 3, 2) + records
    assert request.encode() == framed(1, body) and len(request.encode()) == 28 + 2 * (28 + 8)
    assert Request(5, HEAD, 3, 2, records, asks=False).encode() == framed(3, body)
    answer = Answer(5, HEAD, 0.25, 17, (1.5, -2.0, 0.5))
    assert answer.encode() == framed(2, struct.pack("<I8sfI3f", 5, HEAD, 0.25, 17, 1.5, -2.0, 0.5))
    assert len(answer.encode()) == 28 + 4 * 3
    assert State(5, HEAD).encode() == framed(4, struct.pack("<I8s", 5, HEAD))
    assert join() == framed(5, b"")
    assert State(5, HEAD, b"header").encode() == framed(6, struct.pack("<I8s", 5, HEAD) + b"header")
    assert Refusal(5, "why é").encode() == framed(7, struct.pack("<I", 5) + "why é".encode())
    for payload in (request, answer, State(5, HEAD), State(5, HEAD, b"header"), Refusal(5, "why é")):
        assert type(payload).decode(payload.encode()) == payload
    assert kind_of(join()) == Kind.JOIN


def test_heads_chain_the_header_and_every_record() -> None:
    head = blake2b(b"header", digest_size=8).digest()
    assert first_head(b"header") == head
    assert next_head(head, b"one") == blake2b(head + b"one", digest_size=8).digest()


@given(st.binary(max_size=80))
def test_no_bytes_crash_a_decoder(content: bytes) -> None:
    for payload in (content, framed(content[0] % 9 if content else 0, content)):
        for decode in (kind_of, Request.decode, Answer.decode, State.decode, Refusal.decode):
            with contextlib.suppress(PayloadError):
                decode(payload)


@given(st.integers(0, 8 * (28 + 12) - 1))
def test_any_flipped_bit_is_seen(bit: int) -> None:
    content = bytearray(Answer(5, HEAD, 0.25, 17, (1.5, -2.0, 0.5)).encode())
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PayloadError):
        Answer.decode(bytes(content))


@pytest.mark.parametrize(
    "payload, sentence",
    [
        (b"", "it is no payload: expected b'MZ' at its start, got b''"),
        (framed(1, b"", magic=b"ZM"), "it is no payload: expected b'MZ' at its start, got b'ZM"),
        (framed(1, b"", version=2), "expected version 1 of the payload, got 2"),
        (framed(1, b"")[:-1] + b"x", "it is damaged: its checksum is another one"),
        (framed(9, b""), "expected a kind from 1 to 7, got 9"),
        (join(), "expected ASK or UPDATE, got JOIN"),
        (framed(1, bytes(19)), "ASK needs 20 bytes at least, got 19"),
        (framed(1, struct.pack("<I8sII", 5, HEAD, 4, 2)), "4 to 5 with 2 coefficients, 36 bytes, got 0"),
        (framed(1, struct.pack("<I8sII", 3, HEAD, 4, 2)), "expected the records of steps 4 to 3"),
        (framed(1, struct.pack("<I8sII", 4, HEAD, 4, 0)), "expected the records of steps 4 to 4 with 0"),
    ],
)  # fmt: skip
def test_what_is_no_request(payload: bytes, sentence: str) -> None:
    with pytest.raises(PayloadError, match=sentence):
        Request.decode(payload)


def test_what_is_no_answer() -> None:
    with pytest.raises(PayloadError, match="expected numbers of 4 bytes, got 5 bytes"):
        Answer.decode(framed(2, struct.pack("<I8sfI", 5, HEAD, 0.25, 17) + bytes(5)))


def test_damaged_records_are_refused_by_their_step() -> None:
    whole = record(7, 1.0) + record(8, 2.0)
    assert decode_records(whole, 7, 1).coeffs.tolist() == [[1.0], [2.0]]
    assert len(decode_records(b"", 7, 1)) == 0
    for content, sentence in (
        (whole[:-1] + b"x", "the record of step 8 is damaged"),
        (whole[:-1], "the record of step 8 is damaged"),
        (record(7, 1.0) + record(9, 1.0), "expected the record of step 8, got 9"),
        (record(7, 1.0) + record(8, float("inf")), "the record of step 8 has numbers that are not finite"),
    ):
        with pytest.raises(PayloadError, match=sentence):
            decode_records(content, 7, 1)
