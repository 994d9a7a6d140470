"""Files and directories that may not be written to: said in one sentence before the work, and left alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from commands import WRITING, contents, run, train, writing
from read_only import modes_count, read_only

DENIED = os.strerror(errno.EACCES)


@WRITING
def test_a_directory_is_found_before_the_work(
    command: list[str],
    option: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (closed := tmp_path / "closed").mkdir()
    with read_only(closed), modes_count():
        assert run(*writing(command, "closed/made", inputs)) == 2
    said = capsys.readouterr().err
    assert f"mobizo: {option}: '{closed}' cannot be written to ({DENIED})\n" in said
    assert os.listdir(tmp_path) == ["closed"] and os.listdir(closed) == []


def test_a_journal_and_results_of_a_run(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What lies in them stays, and a run that may write them goes on."""
    out, journal = tmp_path / "out", tmp_path / "run.journal"
    options = [f"--journal={journal}", "--start=zero"]
    assert train(inputs, out, *options) == 0
    before = contents(tmp_path)
    again = ["--resume", "--steps=2", *options]
    for closed, sentence in (
        ([journal], "mobizo: journal: "),
        ([out], f"mobizo: out: '{out}' cannot be written to ({DENIED})"),
        ([out / "adapter"], f"mobizo: out: the results cannot be written to '{out}' ("),
        ([tmp_path], f"mobizo: journal: '{tmp_path}' cannot be written to ({DENIED})"),
    ):
        capsys.readouterr()
        with read_only(*closed), modes_count():
            assert train(inputs, out, *again) == 2
        assert sentence in (said := capsys.readouterr().err) and "Traceback" not in said
        assert DENIED in said
        assert contents(tmp_path) == before
    assert train(inputs, out, *again) == 0


def test_a_cache_that_may_not_be_written_is_done_without(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache := tmp_path / "cache").mkdir()
    monkeypatch.setenv("MOBIZO_CACHE", str(cache))
    with read_only(cache), modes_count():
        assert train(inputs, tmp_path / "out") == 0
    assert os.listdir(cache) == []
