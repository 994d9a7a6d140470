"""Texts on a device, from the command line: tokenize, train and evaluate without Python."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from commands import PROMPT, run
from crash import start_runner
from texts import write_rows
from tiny_texts import questions, reviews, save_chat_model, save_model, write_csv

STEPS = 6
SIZES = ["--queries=2", "--batch-size=4", "--targets=v_proj", "--layers=0:1"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with model/, data.csv, program.pte and tokenizer.json."""
    directory = tmp_path_factory.mktemp("labelled")
    save_model(directory / "model")
    write_csv(directory / "data.csv", reviews())
    return exported(directory, *PROMPT, "--max-length=18")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for conversations in chat.jsonl."""
    directory = tmp_path_factory.mktemp("answers")
    save_chat_model(directory / "model")
    data = write_rows(directory / "chat.jsonl", questions())
    return exported(directory, f"--data={data}", "--max-length=80", "--answer-tokens=8")


def exported(directory: Path, *options: str) -> Path:
    command = ["export", f"--model={directory / 'model'}", f"--out={directory / 'program.pte'}", *SIZES]
    assert run(*command, f"--tokenizer={directory / 'tokenizer.json'}", *options) == 0
    return directory


def runner(command: str, folder: Path, data: str | Path, *options: str | Path) -> tuple[int, str, str]:
    """Exit status, output and errors of a command on the program in the folder."""
    arguments: list[str | Path] = [command, folder / "program.pte", folder / data, *options]
    process = start_runner(arguments)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def by(folder: Path) -> str:
    return f"--tokenizer={folder / 'tokenizer.json'}"


@pytest.mark.parametrize("seed", [5, -5, 2**63 + 9])
def test_the_bytes_of_mobizo_tokenize(seed: int, labelled: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    shared = ["--steps=9", f"--seed={seed}", "--validation-rows=8"]
    data = labelled / "data.csv"
    assert run("tokenize", f"--model={labelled / 'model'}", f"--data={data}", f"--out={here}", *PROMPT,
               "--batch-size=4", "--max-length=18", *shared) == 0  # fmt: skip
    status, output, errors = runner(
        "tokenize", labelled, data, by(labelled), f"--out={there}", *shared, "--json"
    )
    assert (status, errors) == (0, "")
    assert here.read_bytes() == there.read_bytes()
    report = json.loads(output.splitlines()[-1])
    assert report["bytes"] == there.stat().st_size and report["validation_rows"] == 8


def test_the_bytes_of_conversations(answers: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    data = answers / "chat.jsonl"
    assert run("tokenize", f"--model={answers / 'model'}", f"--data={data}", f"--out={here}",
               "--batch-size=4", "--max-length=80") == 0  # fmt: skip
    assert runner("tokenize", answers, data, by(answers), f"--out={there}")[::2] == (0, "")
    assert here.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("kind", ["labelled", "answers"])
def test_texts_train_as_their_tokens(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """To the bit, journal and all: a run of texts can go on as one of tokens."""
    folder: Path = request.getfixturevalue(kind)
    data = folder / ("data.csv" if kind == "labelled" else "chat.jsonl")
    steps = [f"--steps={STEPS}", "--run-seed=3", "--validation-rows=8", "--quiet"]
    tokens = tmp_path / "tokens.safetensors"
    assert runner("tokenize", folder, data, by(folder), f"--out={tokens}", f"--steps={STEPS}", "--seed=3",
                  "--validation-rows=8")[0] == 0  # fmt: skip
    found = {}
    for name, source, options in (("texts", data, [by(folder)]), ("tokens", tokens, [])):
        journal, adapter = tmp_path / f"{name}.journal", tmp_path / f"{name}-adapter.safetensors"
        outputs = [f"--adapter-out={adapter}", f"--journal={journal}"]
        status, _, errors = runner("train", folder, source, *options, *outputs, *steps)
        assert status == 0, errors
        found[name] = adapter.read_bytes(), journal.read_bytes()
    assert found["texts"] == found["tokens"]
    status, output, _ = runner("evaluate", folder, data, by(folder), "--json")
    assert status == 0 and json.loads(output.splitlines()[-1])["rows"] > 0


def test_what_comes_on_the_next_day(labelled: Path, tmp_path: Path) -> None:
    """Rows that come later go into a next run, which begins with the adapter of the first; both journals
    replay to where the second run ends.
    """
    rows = reviews()
    days = [write_csv(tmp_path / "monday.csv", rows[:80]), write_csv(tmp_path / "tuesday.csv", rows)]
    before: list[str] = []
    replayed: list[str] = []
    for number, data in enumerate(days):
        journal, adapter = tmp_path / f"{number}.journal", tmp_path / f"{number}.safetensors"
        options = [
            f"--adapter-out={adapter}",
            f"--journal={journal}",
            f"--steps={STEPS}",
            "--keep=last",
            "--quiet",
        ]
        status, _, errors = runner(
            "train", labelled, data, by(labelled), *options, f"--run-seed={number}", *before
        )
        assert status == 0, errors
        again = tmp_path / f"replayed-{number}.safetensors"
        start = Path(f"{journal}.start.safetensors")  # of a run that begins with a readout
        if start.exists():
            replayed = [f"--adapter-in={start}"]
        status, _, errors = runner("replay", labelled, journal, f"--adapter-out={again}", *replayed)
        assert status == 0, errors
        assert again.read_bytes() == adapter.read_bytes()
        before, replayed = [f"--adapter-in={adapter}"], [f"--adapter-in={again}"]
    assert (tmp_path / "0.safetensors").read_bytes() != (tmp_path / "1.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (b'{"text": "a", "label": 0}\n{"text": \n', [], "rows.jsonl line 2 is not JSON (at byte"),
        (b'{"text": "", "label": 0}\n', [], "rows.jsonl line 1 has an empty 'text'"),
        (b'{"text": "a"}\n', [], "rows.jsonl line 1 has no column 'label', only 'text'"),
        (
            b'{"text": "a", "label": 0}\n',
            ["--text-column=t"],
            "line 1 has no column 't', only 'text', 'label'",
        ),
        (b'{"text": "a", "label": 0}\n', [], "data: expected at least two labels, got 1 ('0')"),
        (b"", [], "rows.jsonl has no rows"),
    ],
)
def test_what_is_refused(
    content: bytes, options: list[str], sentence: str, labelled: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.safetensors"
    data.write_bytes(content)
    out.write_bytes(b"before")
    for command, output in (
        ("tokenize", ["--overwrite", f"--out={out}"]),
        ("train", [f"--adapter-out={out}"]),
    ):
        status, printed, errors = runner(command, labelled, data, by(labelled), *output, *options)
        assert status == 2 and errors.count("\n") == 1 and printed == ""
        assert sentence in errors
    assert out.read_bytes() == b"before"


def test_files_and_options_that_do_not_fit(labelled: Path, answers: Path, tmp_path: Path) -> None:
    out = f"--adapter-out={tmp_path / 'a.safetensors'}"
    cases: list[tuple[list[Any], str]] = [
        (["train", labelled, "data.csv", out], "data.csv: of texts, which need --tokenizer"),
        (
            ["train", labelled, "model", out, by(labelled)],
            "--tokenizer: expected FILE.csv or FILE.jsonl beside it",
        ),
        (
            ["train", labelled, "data.csv", out, by(answers)],
            "not the tokenizer of the program, whose fingerprint is",
        ),
        (["train", answers, "chat.jsonl", out, by(answers), "--max-length=5"], "and 5 fit (--max-length)"),
        (["tokenize", labelled, "data.csv", by(labelled)], "--out is needed"),
        (
            ["tokenize", labelled, "data.csv", f"--out={labelled / 'data.csv'}", by(labelled)],
            "is the same file as",
        ),
        (["evaluate", labelled, "none.csv", by(labelled)], "data: there is no file"),
    ]
    for arguments, sentence in cases:
        status, _, errors = runner(*arguments)
        assert status == 2 and sentence in errors and errors.count("\n") == 1, errors
    assert list(tmp_path.iterdir()) == []


def test_no_space_for_the_data_set(labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"before")
    command = ["tokenize", labelled / "program.pte", labelled / "data.csv", by(labelled), f"--out={out}"]
    process = start_runner(command)
    _, errors = process.communicate(timeout=60)
    told = f"mobizo_runner: --out: {out} exists: name another file, or add --overwrite\n"
    assert (process.returncode, errors) == (2, told)
    process = start_runner([*command, "--overwrite"])
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, 100))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1  # the output's fault, not the input's
    assert errors.startswith(f"mobizo_runner: cannot write {out}: ") and errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    assert out.read_bytes() == b"before"


def test_a_program_without_texts(program: Path, labelled: Path, tmp_path: Path) -> None:
    process = start_runner(
        ["tokenize", program, labelled / "data.csv", by(labelled), f"--out={tmp_path / 'o'}"]
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "the program takes no texts: it was exported without" in errors
