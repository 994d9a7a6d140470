"""Journals that are cut short or damaged at every byte, and disks that are full."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
import tiny
import torch
from helpers import full_disk
from journals import OPTIONS, RECORD, adapters, assert_same_adapters, parse, train, wrapped

from mobizo_kernels.journal import JournalWriter, read_journal, replay
from mobizo_kernels.zo import ZerothOrder


def test_every_truncation(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    _, states = train(path, rng, steps=3)
    content = path.read_bytes()
    header, records = read_journal(path)
    _, _, start = parse(content)
    assert len(content) == start + 3 * RECORD
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size < start:
            with pytest.raises(ValueError, match="is no journal" if size < 8 else "header is cut short"):
                read_journal(path)
            continue
        steps = (size - start) // RECORD
        assert torch.equal(read_journal(path)[1].coeffs, records.coeffs[:steps])
        assert path.stat().st_size == size  # reading changes nothing
        writer, recorded = JournalWriter.resume(path, header)
        with writer:
            assert writer.steps == steps and torch.equal(recorded.losses, records.losses[:steps])
            for step, record in enumerate(records[steps:], steps):
                writer.append(step, record)
        assert path.read_bytes() == content


def test_a_damaged_last_record(tmp_path: Path, rng: torch.Generator) -> None:
    """Nobody replays a run without it unknowingly. The run itself goes on without it, and says so."""
    path = tmp_path / "journal"
    _, states = train(path, rng, steps=3)
    content = path.read_bytes()
    for byte in range(1, RECORD + 1):
        damaged = bytearray(content)
        damaged[-byte] ^= 0x40
        path.write_bytes(damaged)
        for read in (read_journal, lambda path: replay(wrapped(), path)):
            with pytest.raises(ValueError, match="the record of step 2 is damaged; resuming its run drops"):
                read(path)
    assert path.read_bytes() == damaged
    model = wrapped()
    with pytest.warns(UserWarning, match="the record of step 2, the last one, is damaged; it is dropped"):
        zo = ZerothOrder(model, **OPTIONS, journal=path, resume=True)
    assert zo.steps == 2 and path.read_bytes() == content[:-RECORD]
    assert_same_adapters(model, states[2])


def test_damage_names_the_step(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    train(path, rng, steps=3)
    content = path.read_bytes()
    _, _, start = parse(content)
    header = read_journal(path)[0]

    def damaged(message: str, bad: bytes) -> None:
        path.write_bytes(bad)
        for read in (read_journal, lambda path: replay(wrapped(), path)):
            with pytest.raises(ValueError, match=message):
                read(path)
        with pytest.raises(ValueError, match=message):
            JournalWriter.resume(path, header)
        assert path.read_bytes() == bad

    for step in (0, 1):
        for byte in range(RECORD):
            bad = bytearray(content)
            bad[start + step * RECORD + byte] ^= 1
            path.write_bytes(bad)
            with pytest.raises(ValueError, match=f"{path}: the record of step {step} is damaged"):
                read_journal(path)
    bad = bytearray(content + b"rest")
    bad[-5] ^= 1
    damaged("the record of step 2 is damaged", bytes(bad))
    damaged("expected the record of step 1, got 2", content[: start + RECORD] + content[start + 2 * RECORD :])
    damaged("expected the record of step 0, got 2", content[:start] + content[start + 2 * RECORD :])
    for byte in range(8, start):
        bad = bytearray(content)
        bad[byte] ^= 1
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="its header is (damaged|cut short)|expected version 1 to 3"):
            read_journal(path)
    damaged("is no journal", b"MOBIZOJX" + content[8:])
    damaged("is no journal", b"")
    unknown = struct.pack("<qI", 1, 2) + content[start + RECORD + 12 : start + 2 * RECORD - 4]
    unknown += struct.pack("<I", zlib.crc32(unknown))
    message = "the record of step 1 is neither applied nor skipped: 2"
    damaged(message, content[: start + RECORD] + unknown + content[start + 2 * RECORD :])
    for text in (
        b"[]", b'{"queries": 3}', b"\xff", b'{"parameters": []}', b'{"parameters": [], "optimizer": {}}',
        content[16 : start - 4].replace(b'"sgd"', b'"lion"'),
        content[16 : start - 4].replace(b'"momentum": 0.0', b'"momentum": 1.0'),
        content[16 : start - 4].replace(b'"momentum": 0.0, ', b""),
        content[16 : start - 4].replace(b'"lora_a"', b'"lora_c"'),
        content[16 : start - 4].replace(b'"scaling"', b'"scale"'),
        content[16 : start - 4].replace(b'"queries": 3', b'"queries": "3"'),
    ):  # fmt: skip
        head = struct.pack("<8sII", b"MOBIZOJN", 3, len(text)) + text
        damaged("its header cannot be understood", head + struct.pack("<I", zlib.crc32(head)))


@pytest.mark.parametrize("extra", [0, 1, RECORD - 1])
def test_a_full_disk(extra: int, tmp_path: Path, rng: torch.Generator) -> None:
    path, model = tmp_path / "journal", wrapped()
    with full_disk(100), pytest.raises(OSError, match=f"{path} cannot be written .File too large"):
        ZerothOrder(model, **OPTIONS, journal=path)
    assert not list(tmp_path.iterdir())
    zo = ZerothOrder(model, **OPTIONS, journal=path)
    zo.step(tiny.batch(rng))
    before, content, batch = adapters(model), path.read_bytes(), tiny.batch(rng)
    with full_disk(len(content) + extra):
        for _ in range(2):
            with pytest.raises(OSError, match="step 1 cannot be recorded .*File too large.*journal"):
                zo.step(batch)
            assert zo.steps == 1 and path.read_bytes() == content
            assert_same_adapters(model, before)
    zo.step(batch)
    twin = wrapped()
    assert replay(twin, path) == 2
    assert_same_adapters(twin, adapters(model))
