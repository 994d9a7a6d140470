"""Ctrl-C, SIGTERM and a terminal that is closed while steps are made: the run ends in good order, and goes on
from there.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import SHORT, on_terminal, run, train
from crash import CHILDREN

from mobizo_kernels.cli import main
from mobizo_kernels.cli.interrupts import StopRequest, Terminated, ending_signals_interrupt
from mobizo_kernels.cli.progress import TuningBar
from mobizo_kernels.journal import read_journal
from mobizo_kernels.training import score_rows

WEIGHTS = Path("adapter", "adapter_model.safetensors")


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """A job in the background ignores SIGINT, and one behind `nohup` SIGHUP."""
    before = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL))
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def killing(number: int, at: int, times: int = 1) -> Any:
    """What shows a step and gets a signal in step `at`."""
    show = TuningBar.show_step

    def shown(self: TuningBar, step: int, *what: Any) -> None:
        show(self, step, *what)
        for _ in range(times if step == at else 0):
            os.kill(os.getpid(), number)

    return shown


@pytest.mark.parametrize(
    ("number", "code", "times"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGHUP, 129, 2)]
)
def test_a_run_ends_after_the_step_and_goes_on(
    number: int,
    code: int,
    times: int,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A shell that ends with its terminal sends SIGHUP, and so does the system."""
    options = ["--steps=6", "--eval-every=6", "--start=zero"]
    assert train(inputs, tmp_path / "once", *options) == 0
    out, journal = tmp_path / "out", tmp_path / "run.journal"
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(TuningBar, "show_step", killing(number, 2, times))
        assert train(inputs, out, *options, f"--journal={journal}", "--json") == code
    said = capsys.readouterr()
    assert "mobizo: ending after this step; once more ends at once\n" in said.err
    assert f"mobizo: interrupted after 3 of 6 steps; the adapter of step 3 is in {out}" in said.err
    found = json.loads((out / "metrics.json").read_text())
    assert json.loads(said.out) == {name: found[name] for name in json.loads(said.out)}
    assert (found["steps"], found["interrupted"], found["stopped"]) == (3, True, True)
    assert found["validation"][-1]["step"] == 3 and len(found["losses"]) == 3
    assert (found["accuracy_after"], found["eval_rows"], found["predictions"]) == (None, 0, [])
    assert found["accuracy_before"] is not None and (out / WEIGHTS).exists()

    command = shlex.split(said.err.splitlines()[-1])
    assert command[0] == "mobizo" and command[-1] == "--resume"
    assert run(*command[1:]) == 0
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "once" / WEIGHTS).read_bytes()
    assert "interrupted" not in json.loads((out / "metrics.json").read_text())


def test_twice_ends_at_once(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TuningBar, "show_step", killing(signal.SIGINT, 0, 2))
    assert train(inputs, tmp_path / "out") == 130
    assert "interrupted: no result has been written; with --journal FILE a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interrupt_in_the_last_scoring_keeps_what_was_tuned(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also without a journal, which could bring it back."""
    options = ["--steps=2", "--start=zero"]
    assert train(inputs, tmp_path / "whole", *options) == 0
    calls = []

    def scored(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 2 and arguments[1] is calls[0][1]:  # the test rows, for the second time
            os.kill(os.getpid(), signal.SIGTERM)
        return score_rows(*arguments)

    monkeypatch.setattr("mobizo_kernels.cli.train_eager.score_rows", scored)
    capsys.readouterr()
    assert train(inputs, tmp_path / "out", *options) == 143
    assert "interrupted after 2 of 2 steps; the adapter of step" in capsys.readouterr().err
    whole, found = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "out"))
    assert (
        found["interrupted"] and found.get("accuracy_after") is None and whole["accuracy_after"] is not None
    )
    assert found["losses"] == whole["losses"]
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_handlers_are_put_back_and_ignored_signals_stay_so() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequest()
    with pytest.raises(Terminated), ending_signals_interrupt():
        with stop.armed():
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before[0]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_run_outlives_its_terminal(inputs: Path, tmp_path: Path) -> None:
    """By the step that it is making, and until its results are written."""
    out, journal = tmp_path / "out", tmp_path / "run.journal"
    files = [f"--model={inputs / 'model'}", f"--data={inputs / 'data.csv'}", f"--out={out}"]
    command = ["train", *files, *SHORT, f"--journal={journal}", "--steps=20000", "--start=zero"]
    terminal, own = os.openpty()
    process = CHILDREN.Process(target=on_terminal, args=(os.ttyname(own), command))
    process.start()
    shown = b""
    while not re.search(rb"tuning: .* [1-9][0-9]*/20000", shown):
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 1000)
        assert process.is_alive(), shown.decode()
    os.close(own)
    os.close(terminal)
    process.join(120)
    assert process.exitcode == 128 + signal.SIGHUP
    found = json.loads((out / "metrics.json").read_text())
    assert found["interrupted"] and (out / WEIGHTS).exists()
    assert 0 < found["steps"] == len(read_journal(journal)[1]) < 20000


class Writing(io.RawIOBase):
    """A file that gets Ctrl-C while it is written to."""

    def __init__(self, file: io.FileIO) -> None:
        self.file, self.seen = file, b""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.file.fileno()

    def write(self, data: Any) -> int:
        self.seen += bytes(data)
        os.kill(os.getpid(), signal.SIGINT)
        return len(data)


def test_a_signal_in_the_middle_of_output_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of Python's refuses to be written to by a handler that has interrupted its own writing."""
    stop = StopRequest()
    with io.FileIO(tmp_path / "stderr", "w") as file:
        raw = Writing(file)
        monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BufferedWriter(raw), write_through=True))
        with stop.armed():
            print("a bar", end="", file=sys.stderr, flush=True)
        monkeypatch.undo()
    assert stop.signal == signal.SIGINT
    assert raw.seen == b"a bar"
    assert "ending after this step" in (tmp_path / "stderr").read_text()


class Gone(io.StringIO):
    """What a reader has gone from."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize("stderr", [Gone(), None])
def test_a_run_outlives_who_reads_its_bar(
    stderr: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`2>&1 | tee log` loses its reader at Ctrl-C."""
    monkeypatch.setattr("sys.stderr", stderr)
    stop = StopRequest()
    with TuningBar(3, 8) as bar, stop.armed():
        os.kill(os.getpid(), signal.SIGINT)
        for step in range(3):
            bar.show_step(step, 1.0, 1.0)
    assert stop()


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (Terminated(), 143), (Terminated(signal.SIGHUP), 129)]
)
def test_an_interrupt_before_a_command_begins(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(main, "app", interrupted)
    assert run("env") == code
