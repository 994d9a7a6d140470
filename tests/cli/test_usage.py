"""Help that any terminal shows whole, and outputs that are refused before the work begins."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import WRITING, run, writing
from typer.main import get_command

from mobizo_kernels.cli.commands import app

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [24, 40, 80, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_cuts_nothing(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(name, "--help") == 0
    words = capsys.readouterr().out
    for parameter in COMMANDS[name].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--"):
                assert f"  {option}" in words or f"/ {option}" in words
    assert "\u2026" not in words


def test_the_list_of_commands_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    shown = "".join(capsys.readouterr().err.split())  # lines end anywhere, also behind a hyphen
    for name, command in COMMANDS.items():
        assert name + "".join(command.help.partition("\n\n")[0].split()) in shown


@WRITING
def test_where_no_file_can_be_made(
    command: list[str],
    option: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*writing(command, "/proc/made", inputs)) == 2
    assert capsys.readouterr().err.endswith(
        f"mobizo: {option}: '/proc' cannot be written to (No such file or directory)\n"
    )
    assert not list(tmp_path.iterdir())


@WRITING
def test_a_path_through_a_directory_that_is_not_there(
    command: list[str],
    option: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It would have to be made, and be left empty."""
    monkeypatch.chdir(tmp_path)
    assert run(*writing(command, "a/../b", inputs)) == 2
    assert f"' leads through '{tmp_path / 'a'}', which does not exist" in (said := capsys.readouterr().err)
    assert f"mobizo: {option}: '" in said
    assert not list(tmp_path.iterdir())
