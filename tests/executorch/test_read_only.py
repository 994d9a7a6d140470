"""The runner where it may not write: one sentence before the work, and nothing is changed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from commands import contents
from crash import start_runner
from read_only import AS_ANYBODY, read_only

pytestmark = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")


def test_nothing_is_changed(program: Path, dataset: Path, tmp_path: Path) -> None:
    """Neither beside a run nor after it."""
    closed, journal, adapter = tmp_path / "closed", tmp_path / "journal", tmp_path / "adapter.safetensors"
    closed.mkdir()
    train = ["train", program, dataset, "--steps=3", "--start=zero", "--quiet"]
    whole = [*train, f"--journal={journal}", f"--adapter-out={adapter}"]
    process = start_runner(whole)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 0
    before = contents(tmp_path)
    denied = os.strerror(errno.EACCES)
    cases: list[tuple[list[str | Path], str]] = [
        ([*train, f"--adapter-out={closed / 'a'}"], f"--adapter-out: cannot write to {closed}"),
        (
            [*train, f"--adapter-out={adapter}", f"--journal={closed / 'j'}"],
            f"--journal: cannot write to {closed}",
        ),
        ([*train, f"--adapter-out={adapter}", f"--log={closed / 'log'}"], f"cannot open {closed / 'log'}"),
        ([*whole, "--resume"], f"cannot open {journal}"),
        (
            ["replay", program, journal, f"--adapter-out={closed / 'a'}"],
            f"--adapter-out: cannot write to {closed}",
        ),
    ]  # fmt: skip
    with read_only(closed, journal):
        for arguments, sentence in cases:
            process = start_runner(arguments, shell=AS_ANYBODY)
            output, errors = process.communicate(timeout=60)
            assert (process.returncode, output, errors) == (2, "", f"mobizo_runner: {sentence}: {denied}\n")
    assert contents(tmp_path) == before
