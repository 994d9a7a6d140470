"""One run at a time holds a journal, and notices when it is no longer its own."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from journals import OPTIONS, RECORD, adapters, assert_same_adapters, train, wrapped

from mobizo_kernels.journal import JournalHeader, JournalLost, JournalWriter, read_journal, replay
from mobizo_kernels.optim import StepRecord
from mobizo_kernels.zo import ZerothOrder


def test_a_journal_has_one_writer(tmp_path: Path, rng: torch.Generator) -> None:
    path, model = tmp_path / "journal", wrapped()
    zo = ZerothOrder(model, **OPTIONS, journal=path)
    zo.step(tiny.batch(rng))
    content = path.read_bytes()
    with pytest.raises(BlockingIOError, match=f"journal {path} is being written by another run"):
        ZerothOrder(wrapped(), **OPTIONS, journal=path, resume=True)
    child = "import sys, fcntl; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    locked = subprocess.run([sys.executable, "-c", child, path], capture_output=True, text=True)
    assert locked.returncode == 1 and "BlockingIOError" in locked.stderr
    assert path.read_bytes() == content
    assert len(read_journal(path)[1]) == 1  # reading needs no lock
    assert zo.journal is not None
    zo.journal.close()
    with ZerothOrder(wrapped(), **OPTIONS, journal=path, resume=True).journal as journal:  # type: ignore[union-attr]
        assert journal.steps == 1


def test_a_forked_child_lets_go(tmp_path: Path, rng: torch.Generator) -> None:
    """Processes as the workers of a DataLoader, which may outlive the run that made them."""
    path = tmp_path / "journal"
    zo = ZerothOrder(wrapped(), **OPTIONS, journal=path)
    zo.step(tiny.batch(rng))
    assert zo.journal is not None
    ready, told = os.pipe()
    waiting, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.write(told, b"x")
        os.read(waiting, 1)  # until the parent closes its end
        os._exit(0 if zo.journal._file.closed else 1)
    try:
        os.read(ready, 1)
        with pytest.raises(BlockingIOError):  # the run still holds it
            ZerothOrder(wrapped(), **OPTIONS, journal=path, resume=True)
        zo.journal.close()
        with ZerothOrder(wrapped(), **OPTIONS, journal=path, resume=True).journal as journal:  # type: ignore[union-attr]
            assert journal.steps == 1
    finally:
        os.close(end)
    assert os.waitpid(child, 0)[1] == 0


def begin(path: Path, header: JournalHeader, record: StepRecord, start: Any) -> None:
    start.wait()
    try:
        with JournalWriter.create(path, header) as writer:
            for step in range(20):
                writer.append(step, record)
    except FileExistsError:
        os._exit(3)
    os._exit(0)


def test_creating_does_not_race(tmp_path: Path, rng: torch.Generator) -> None:
    train(tmp_path / "other", rng, steps=1)
    header, context = read_journal(tmp_path / "other")[0], multiprocessing.get_context("fork")
    for attempt in range(10):
        path, start = tmp_path / str(attempt), context.Barrier(3)
        records = [StepRecord(torch.full((3,), float(racer))) for racer in range(3)]
        racers = [context.Process(target=begin, args=(path, header, record, start)) for record in records]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        codes = [racer.exitcode for racer in racers]
        assert sorted(codes) == [0, 3, 3]  # type: ignore[type-var]
        assert torch.equal(read_journal(path)[1].coeffs, torch.full((20, 3), float(codes.index(0))))
    assert sorted(os.listdir(tmp_path)) == [*map(str, range(10)), "other"]


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    (path.parent / "new").write_bytes(path.read_bytes())
    (path.parent / "new").replace(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - RECORD)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(RECORD))


def unlink_one_of_two_names(path: Path) -> None:
    path.with_name("second").hardlink_to(path)
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove, "was removed or renamed"),
        (unlink_one_of_two_names, "was removed or renamed"),
        (replace, "was replaced by another file"),
        (cut, "has .* bytes where .* were written"),
        (empty, "has 0 bytes where"),
        (lengthen, "has .* bytes where"),
    ],
)
def test_a_lost_journal_ends_the_run(
    harm: Callable[[Path], None], message: str, tmp_path: Path, rng: torch.Generator
) -> None:
    """Nothing is applied that is not recorded, and nothing is written to what is not the run's."""
    path, model = tmp_path / "journal", wrapped()
    zo = ZerothOrder(model, **OPTIONS)
    zo.open_journal(path)
    for _ in range(2):
        zo.step(tiny.batch(rng))
    harm(path)
    before, there = adapters(model), path.read_bytes() if path.exists() else None
    for _ in range(2):
        with pytest.raises(JournalLost, match=f"journal {path} {message}.* while the run was writing it"):
            zo.step(tiny.batch(rng))
    assert zo.journal is not None
    with pytest.raises(JournalLost, match=message):
        zo.journal.sync()
    assert_same_adapters(model, before)
    assert zo.steps == 2
    assert (path.read_bytes() if path.exists() else None) == there
    zo.journal.close()


def test_what_is_no_loss(tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another name of the journal, and another working directory of the process."""
    monkeypatch.chdir(tmp_path)
    zo = ZerothOrder(wrapped(), **OPTIONS, journal="journal")
    (tmp_path / "backup").hardlink_to(tmp_path / "journal")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    zo.step(tiny.batch(rng))
    assert zo.journal is not None
    zo.journal.sync()
    zo.journal.close()
    assert len(read_journal(tmp_path / "backup")[1]) == 1


def unsupported(*_: Any, **__: Any) -> None:
    raise OSError(95, "Operation not supported")


def test_file_systems_without_locks_or_links(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without links the journal is made in its place; without locks a second writer shows by the size."""
    path, model = tmp_path / "journal", wrapped()
    monkeypatch.setattr(os, "link", unsupported)
    with ZerothOrder(model, **OPTIONS, journal=path).journal:  # type: ignore[union-attr]
        assert os.listdir(tmp_path) == ["journal"]
        with pytest.raises(FileExistsError, match="exists already"):
            ZerothOrder(wrapped(), **OPTIONS, journal=path)
        with pytest.raises(BlockingIOError):
            ZerothOrder(wrapped(), **OPTIONS, journal=path, resume=True)
    path.unlink()
    monkeypatch.setattr(fcntl, "flock", unsupported)
    warned = pytest.warns(UserWarning, match=f"journal {path} lies on a file system without locks")
    with warned:
        zo = ZerothOrder(model, **OPTIONS, journal=path)
    with warned:
        other = ZerothOrder(wrapped(), **OPTIONS, journal=path, resume=True)
    batch = tiny.batch(rng)
    zo.step(batch)
    with pytest.raises(JournalLost, match="another program changed it"):
        other.step(batch)
    twin = wrapped()
    assert replay(twin, path) == 1
    assert_same_adapters(twin, adapters(model))


def test_what_a_killed_run_left_goes(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    dead, living = tmp_path / ".journal-0123abcd.mobizo", tmp_path / ".journal-4567cdef.mobizo"
    mine = tmp_path / ".journal-notours.mobizo"
    for file in (dead, living, mine):
        file.write_bytes(b"half")
    with living.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        train(path, rng, steps=1)
        assert sorted(os.listdir(tmp_path)) == sorted([living.name, mine.name, "journal"])
    header = read_journal(path)[0]
    JournalWriter.resume(path, header)[0].close()
    assert sorted(os.listdir(tmp_path)) == sorted([mine.name, "journal"])
