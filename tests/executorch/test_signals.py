"""Signals that end the runner at work: what was recorded is there, and the run goes on to the same bytes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from crash import run_to_end, start_runner


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_loses_nothing(number: signal.Signals, program: Path, dataset: Path, tmp_path: Path) -> None:
    def arguments(name: str) -> list[str | Path]:
        files = ["--journal", tmp_path / f"{name}.journal", "--adapter-out", tmp_path / f"{name}.safetensors"]
        return ["train", program, dataset, "--steps=300", "--eval-every=0", "--keep=last", "--resume",
                "--print-every=1", *files]  # fmt: skip

    # A job in the background ignores SIGINT, and hands that on.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        process = start_runner(arguments("cut"))
    finally:
        signal.signal(number, before)
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == -number
    assert not (tmp_path / "cut.safetensors").exists()
    for name in ("cut", "whole"):
        run_to_end(arguments(name))
    for kind in ("journal", "safetensors"):
        assert (tmp_path / f"cut.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()
