"""Commands on a disk that fails, and beside a clock that jumps. All calls of more commands: `make crash`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_tasks import python_commands
from faults import Children, PythonDisk, build, disturbed, results

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    with Children(build(tmp_path_factory.mktemp("faults"))) as running:
        yield running


@pytest.mark.parametrize("name", ["mobizo train", "mobizo tokenize", "checkpoints of ZOTrainer"])
def test_nothing_is_lost_on_a_disk_that_fails(name: str, children: Children, tmp_path: Path) -> None:
    """While what it begins with is written, and while the results are."""
    disk = PythonDisk(children, python_commands(tmp_path)[name])
    (tmp_path / "count").mkdir()
    calls = disk.changes(tmp_path / "count")
    assert calls >= 5
    (tmp_path / "runs").mkdir()
    ends = disturbed(disk, tmp_path / "runs", [calls // 2, calls - 2])
    assert len(ends) == 4 and all(ended.status != 0 for ended in ends)


def test_a_clock_that_jumps(children: Children, tmp_path: Path) -> None:
    """A day ahead, a day behind: no bit of a run comes from the time of day."""
    command, found = python_commands(tmp_path)["mobizo train"], []
    for faults in ({}, {"FAULT_CLOCK": "1"}):
        (folder := tmp_path / f"run{len(found)}").mkdir()
        ended = children.run(command(folder), faults)
        assert ended.status == 0, ended.errors
        found.append(results(folder))
    assert found[0] == found[1] and any(name.endswith("journal") for name in found[0])
