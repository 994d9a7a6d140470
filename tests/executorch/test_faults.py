"""The native trainer on a disk that fails. All of its calls: `make crash`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults import RunnerDisk, build, disturbed

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def test_nothing_is_lost_on_a_disk_that_fails(program: Path, dataset: Path, tmp_path: Path) -> None:
    """While the journal is made, a record is written and the adapter is."""
    disk = RunnerDisk(
        build(tmp_path),
        lambda folder: [
            "train", program, dataset, "--steps=6", "--eval-every=2", "--quiet", "--resume",
            f"--journal={folder / 'journal'}", f"--adapter-out={folder / 'adapter.safetensors'}",
        ],
    )  # fmt: skip
    (tmp_path / "count").mkdir()
    calls = disk.changes(tmp_path / "count")
    assert calls > 20
    (tmp_path / "runs").mkdir()
    ends = dict(disturbed(disk, tmp_path / "runs", [2, 4, 8, calls - 3]))
    assert len(ends) == 8 and all(ended.status != 0 for ended in ends.values())
