"""Where the system fails a command: full disks, closed pipes, interrupts. What was there before stays."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import PROMPT, contents, run, train
from helpers import full_disk, little_memory

from mobizo_kernels.cli import environment, runner
from mobizo_kernels.cli.processes import in_fresh_process
from mobizo_kernels.errors import memory_exhausted
from mobizo_kernels.journal import read_journal


@pytest.mark.parametrize("arguments", [["env"], ["env", "--json"], ["--help"], ["train", "--help"]])
def test_output_to_a_full_disk(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run(*arguments) == 1
    assert capsys.readouterr().err == "mobizo: the output cannot be used (No space left on device)\n"


def test_output_that_nobody_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with suppress(BrokenPipeError), os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run("env", "--json") == 1
    assert capsys.readouterr().err == ""


def test_no_output_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run("env") == 1
    assert "mobizo: the output cannot be used (Bad file descriptor)" in capsys.readouterr().err


def test_output_of_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "out", "w", encoding="ascii") as ascii_only:
        monkeypatch.setattr(sys, "stdout", ascii_only)
        monkeypatch.setattr(environment, "environment", lambda: {"cpu": "caf\u00e9"})
        assert run("env") == 0
    assert (tmp_path / "out").read_text() == "  cpu                   caf\\xe9\n"


@pytest.mark.parametrize("journal", [False, True])
def test_results_on_a_full_disk(
    journal: bool, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("an earlier run")
    options = ["--start=zero", *([f"--journal={tmp_path / 'run.journal'}"] if journal else [])]
    with full_disk(4096):
        assert train(inputs, out, "--overwrite", *options) == 2
    advice = "go on with --resume" if journal else "with --journal FILE a run could go on"
    assert f"mobizo: out: the results cannot be written to '{out}' (" in (err := capsys.readouterr().err)
    assert err.endswith(f"; {advice}\n")
    assert contents(out) == {out / "metrics.json": b"an earlier run"}
    if journal:
        assert train(inputs, out, "--resume", *options) == 0


def test_a_start_on_a_full_disk(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, journal = tmp_path / "out", tmp_path / "run.journal"
    with full_disk(4096):
        assert train(inputs, out, f"--journal={journal}") == 2
    assert f"mobizo: journal: the start '{tmp_path / 'run.journal.start'}" in capsys.readouterr().err
    assert not journal.exists() and not out.exists()
    assert train(inputs, out, "--resume", f"--journal={journal}") == 0


def test_memory_that_is_exhausted(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a step that is too large: the sentence is the last line, and the journal is whole."""
    out, journal = tmp_path / "out", tmp_path / "run.journal"
    options = ["--start=zero", "--queries=50000", "--tail=0", f"--journal={journal}"]
    with little_memory(512 * 2**20):
        assert train(inputs, out, *options) == 1
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"mobizo: memory is exhausted: \d+ bytes more were asked for", said[-1])
    assert not any("Traceback" in line for line in said)
    assert len(read_journal(journal)[1]) == 0 and not out.exists()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "memory is exhausted"),
        (RuntimeError("std::bad_alloc"), "memory is exhausted"),
        (ImportError("libgomp.so: failed to map segment from shared object"), "memory is exhausted"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."),
            "memory is exhausted: 2.50 GiB more were asked for",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_errors_that_mean_that_memory_is_exhausted(error: Exception, sentence: str | None) -> None:
    assert memory_exhausted(error) == sentence


@pytest.mark.parametrize("name", ["adapter", "metrics.json", "learning_curve.png"])
def test_something_else_in_the_place_of_a_result(
    name: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text("a file") if name == "adapter" else path.mkdir()
    assert train(inputs, tmp_path, "--overwrite") == 2
    assert f"mobizo: out: '{path}' is in the way" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["/dev/null", "/dev/null/data.safetensors", "{tmp_path}"])
def test_a_data_set_that_cannot_be_written(
    out: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--model={inputs / 'model'}", f"--data={inputs / 'data.csv'}", *PROMPT]
    assert run("tokenize", *data, f"--out={out.format(tmp_path=tmp_path)}") == 2
    assert "mobizo: out: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ([], "with --journal FILE a run can go on\n$"),
        (["--journal=run.journal"], "go on with\n  mobizo train .* --journal=run.journal --resume\n$"),
        (["--journal=run.journal", "--resume"], "go on with\n  mobizo train .* --resume\n$"),
    ],
)
def test_an_interrupt_before_the_first_step(
    options: list[str],
    advice: str,
    number: int,
    code: int,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(settings: Any, stop: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    monkeypatch.setattr("mobizo_kernels.cli.train.train", interrupted)
    try:
        assert train(inputs, tmp_path, *options) == code
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err
    assert said.startswith("\nmobizo: interrupted: no result has been written; ")
    assert re.search(advice, said)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_interrupt_does_not_wait_for_another_process() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT]).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            in_fresh_process(time.sleep, 300)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 300


def test_the_runner_of_a_build_without_executorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mobizo_kernels.executorch", None)  # where it cannot be imported
    monkeypatch.setattr(importlib.reload(runner), "__file__", str(tmp_path / "cli" / "runner.py"))
    with pytest.raises(SystemExit, match="2"):
        runner.run()
    assert "mobizo_runner: this installation was built without ExecuTorch" in capsys.readouterr().err
    program = tmp_path / "executorch" / "mobizo_runner"
    program.parent.mkdir()
    program.write_text("no program")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    with pytest.raises(SystemExit, match="2"):
        runner.run()
    assert "mobizo_runner: ExecuTorch is missing" in capsys.readouterr().err
    found = importlib.machinery.ModuleSpec("executorch", None, is_package=True)
    found.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(SystemExit, match="2"):
        runner.run()
    assert f"mobizo_runner: {program} cannot be run (" in capsys.readouterr().err
