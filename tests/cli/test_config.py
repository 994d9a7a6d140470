"""Options from a file, and the file that a run leaves to be repeated; completion; exit codes."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from commands import PROMPT, run, train

from mobizo_kernels.cli import commands
from mobizo_kernels.cli.options import takes
from mobizo_kernels.cli.settings import TrainSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "command_line.md"


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> TrainSettings:
    """What `mobizo train` makes of its arguments."""
    found = []
    monkeypatch.setattr("mobizo_kernels.cli.train.train", lambda settings, stop: found.append(settings) or {})
    monkeypatch.setattr(commands.report, "training_table", lambda summary: "")
    assert run("train", *arguments) == 0
    return found[0]


def test_a_file_is_the_flags_and_flags_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [
        "--data=x.csv", "--template={text} so", '--verbalizer={"0": " a", "1": " b"}', "--eps=1e-3",
        "--steps=5", "--no-normalize", "--batch-size=3", f"--out={tmp_path}",
    ]  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: x.csv\ntemplate: '{text} so'\nverbalizer: {'0': ' a', '1': ' b'}\neps: 1e-3\nsteps: 7\n"
        f"normalize: false\nbatch-size: 3\nalpha: null\nout: {tmp_path}\n"
    )
    assert settings_of(monkeypatch, f"--config={file}", "--steps=5") == settings_of(monkeypatch, *flags)
    assert settings_of(monkeypatch, f"--config={file}").steps == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 3", "has 'stepz', which is no option of this command; did you mean 'steps'?"),
        ("config: x", "has 'config', which is no option of this command"),
        ("steps: 0", "Invalid value for '--steps'"),
        ("steps: 1.5", "Invalid value for '--steps'"),
        ("steps: true", "Invalid value for '--steps'"),
        ("optimizer: sdg", "Invalid value for '--optimizer'"),
        ("lr: inf", "lr: expected a finite number, got inf"),
        ("steps: [1, 2]", "expected one value for 'steps' in"),
        ("model: {name: m}", "expected one value for 'model' in"),
        ("model: &m {name: *m}", "expected one value for 'model' in"),
        ("verbalizer: {a: [x]}", "expected a text for each name in 'verbalizer' in"),
        ("verbalizer: {a: x, a: y}", "'a' is there twice"),
        ("steps: 3\nsteps: 4", "'steps' is there twice"),
        ("batch-size: 3\nbatch_size: 4", "has 'batch_size' twice"),
        ("verbalizer: &a {b: *a}", "expected a text for each name in 'verbalizer' in"),
        ("steps: 0x" + "f" * 5000, "Invalid value for '--steps'"),
        ("steps: " + "[" * 3000, "has too many levels"),
        ("- steps", "expected names and values in"),
        ("a: [", "is no YAML"),
        (None, "cannot be read"),
    ],
)
def test_what_a_file_has_is_checked_as_flags_are(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    assert run("train", f"--config={file}", f"--out={tmp_path / 'out'}") == 2
    assert message in capsys.readouterr().err


def test_values_are_texts_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML alone would make a boolean, a number in base 8, a date and a number in base 60 of them."""
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: 2024-01-01\nlabel-column: 010\ntext-column: 12:30\ntemplate: on\nnormalize: no\n"
        "verbalizer: {yes: ' good', no: 1.50, 0: 2024-02-02}\n"
    )
    settings = settings_of(monkeypatch, f"--config={file}", f"--out={tmp_path}")
    assert (settings.data, settings.label_column, settings.text_column) == ("2024-01-01", "010", "12:30")
    assert (settings.template, settings.normalize) == ("on", False)
    assert json.loads(settings.verbalizer) == {"yes": " good", "no": "1.50", "0": "2024-02-02"}


def test_a_run_repeats_itself_from_its_file(inputs: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert train(inputs, out, "--start=zero", "--eps=3e-5", f"--journal={tmp_path / 'journal'}") == 0
    written = yaml.safe_load((out / "config.yaml").read_text())
    assert not {"out", "journal", "resume", "overwrite"} & written.keys()
    assert run("train", f"--config={out / 'config.yaml'}", f"--out={again}") == 0
    first, second = (json.loads((path / "metrics.json").read_text()) for path in (out, again))
    assert first["losses"] == second["losses"]
    weights = Path("adapter", "adapter_model.safetensors")
    assert (out / weights).read_bytes() == (again / weights).read_bytes()
    assert (out / "config.yaml").read_text() == (again / "config.yaml").read_text()


def test_other_commands_read_files_too(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "eval.yaml"
    file.write_text(f"model: {inputs / 'model'}\ndata: {inputs / 'data.csv'}\neval_rows: 7\n")
    assert run("eval", f"--config={file}", *PROMPT, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 7


@dataclass
class _Hidden:
    config: str = ""


def test_no_setting_is_hidden_by_what_every_command_takes() -> None:
    with pytest.raises(TypeError, match=r"_Hidden must not have \['config'\], which every command takes"):
        takes(_Hidden)(lambda settings, told: None)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell) == 0
    assert f"_MOBIZO_COMPLETE=complete_{shell}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mobizo tr", {"train"}),
        ("mobizo train --optimizer a", {"adam"}),
        ("mobizo eval --ada", {"--adapter"}),
        ("mobizo export --cont", {"--context"}),
    ],
)
def test_completion_knows_commands_options_and_values(
    words: str, expected: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_MOBIZO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert run() == 0
    assert set(capsys.readouterr().out.split()) == expected


@pytest.mark.parametrize("command", ["train", "eval", "generate", "chat", "export", "tokenize", "adapter"])
def test_exit_codes_are_the_same_in_all_commands(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--help") == 0
    assert run(command, "--no-such-option") == 2
    assert run(command, "--config=no/such/file.yaml") == 2
    capsys.readouterr()
    monkeypatch.setattr(commands, "_done", _interrupted)
    needed = {"train": ["--out=x"], "export": ["--out=x.pte"], "generate": ["hi"], "adapter": ["a", "b"]}
    options = needed.get(command, ["--out=x"] if command == "tokenize" else [])
    assert run(command, *options) == 130


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["main.py", "--version"])
    monkeypatch.delitem(sys.modules, "mobizo_kernels.cli.main")
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("mobizo_kernels.cli.main", run_name="__main__")
    assert capsys.readouterr().out.startswith("mobizo ")


def test_the_page_has_every_command_and_exit_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = " ".join(re.findall(r"^\| (`mobizo .*?) \|", page, re.MULTILINE))
    known = {command.name for command in commands.app.registered_commands}
    assert set(re.findall(r"`mobizo (\w+)`", rows)) == known
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "1", "2", "129", "130", "143"]
    assert set(re.findall(r"\b\d+\b", commands.EXIT_CODES)) == {"0", "1", "2", "129", "130", "143"}


def _interrupted(work: object, advice: str | None = None) -> None:
    raise KeyboardInterrupt
