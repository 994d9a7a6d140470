"""The native trainer on a disk that fails, and beside a clock that jumps. All of its calls: `make crash`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults import RunnerDisk, build, disturbed, results

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def runner(program: Path, dataset: Path, tmp_path: Path) -> RunnerDisk:
    """That makes a short run."""
    return RunnerDisk(
        build(tmp_path),
        lambda folder: [
            "train", program, dataset, "--steps=6", "--eval-every=2", "--quiet", "--resume",
            f"--journal={folder / 'journal'}", f"--adapter-out={folder / 'adapter.safetensors'}",
        ],
    )  # fmt: skip


def test_nothing_is_lost_on_a_disk_that_fails(program: Path, dataset: Path, tmp_path: Path) -> None:
    """While the journal is made, a record is written and the adapter is."""
    disk = runner(program, dataset, tmp_path)
    (tmp_path / "count").mkdir()
    calls = disk.changes(tmp_path / "count")
    assert calls > 20
    (tmp_path / "runs").mkdir()
    ends = disturbed(disk, tmp_path / "runs", [2, 4, 8, calls - 3])
    assert len(ends) == 8 and all(ended.status != 0 for ended in ends)


def test_a_clock_that_jumps(program: Path, dataset: Path, tmp_path: Path) -> None:
    """A day ahead, a day behind: no bit of a run comes from the time of day."""
    disk, found = runner(program, dataset, tmp_path), []
    told = subprocess.run(
        [sys.executable, "-c", "import time; print([time.time() for _ in range(4)])"],
        env={**os.environ, "LD_PRELOAD": str(disk.library), "FAULT_CLOCK": "1"},
        stdout=subprocess.PIPE, text=True, check=True,
    ).stdout  # fmt: skip
    times = [float(time) for time in told.strip("[]\n").split(",")]
    assert max(times) - min(times) > 86400 and times != sorted(times)
    for faults in ({}, {"FAULT_CLOCK": "1"}):
        (folder := tmp_path / f"run{len(found)}").mkdir()
        ended = disk.run(folder, **faults)
        assert (ended.status, ended.errors) == (0, [])
        found.append(results(folder))
    assert found[0] == found[1] and "journal" in found[0]
