"""Ctrl-C and SIGTERM while steps are made: the run ends in good order, and goes on from there."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run, train

from mobizo_kernels.cli.interrupts import StopRequest, Terminated, sigterm_interrupts
from mobizo_kernels.cli.progress import TuningBar

WEIGHTS = Path("adapter", "adapter_model.safetensors")


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """A job in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def killing(number: int, at: int, times: int = 1) -> Any:
    """What shows a step and gets a signal in step `at`."""
    show = TuningBar.show_step

    def shown(self: TuningBar, step: int, *what: Any) -> None:
        show(self, step, *what)
        for _ in range(times if step == at else 0):
            os.kill(os.getpid(), number)

    return shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_ends_after_the_step_and_goes_on(
    number: int,
    code: int,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--steps=6", "--eval-every=6", "--start=zero"]
    assert train(inputs, tmp_path / "once", *options) == 0
    out, journal = tmp_path / "out", tmp_path / "run.journal"
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(TuningBar, "show_step", killing(number, 2))
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


def test_handlers_are_put_back_and_ignored_signals_stay_so() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequest()
    with pytest.raises(Terminated), sigterm_interrupts():
        with stop.armed():
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before[0]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
