"""`mobizo train` on a disk that fails. All of its calls: `make crash`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults import EagerDisk, build, disturbed, tiny_arguments

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def test_nothing_is_lost_on_a_disk_that_fails(tmp_path: Path) -> None:
    """While the start or a record is written, and while the results are."""
    disk = EagerDisk(build(tmp_path), tiny_arguments(tmp_path))
    try:
        (tmp_path / "count").mkdir()
        calls = disk.changes(tmp_path / "count")
        assert calls > 20
        (tmp_path / "runs").mkdir()
        ends = dict(disturbed(disk, tmp_path / "runs", [calls // 2, calls - 3]))
    finally:
        disk.close()
    assert len(ends) == 4 and all(ended.status != 0 for ended in ends.values())
