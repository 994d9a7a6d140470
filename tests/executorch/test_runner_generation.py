"""What `mobizo_runner generate` and `chat` answer: the words of `mobizo generate`, and what they refuse."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from crash import start_runner
from programs import tiny_program
from tiny_texts import TEMPLATE, WORDS, save_chat_model, tokenizer
from tokenizers_of_kinds import saved
from transformers import AutoTokenizer

from mobizo_kernels.cli import main
from mobizo_kernels.cli.generate import generate
from mobizo_kernels.cli.writing_settings import GenerateSettings
from mobizo_kernels.data import ChatEncoder
from mobizo_kernels.executorch import Trainer


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_program(tmp_path_factory, context=40, layers=2)


def test_the_runner_refuses(program: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    _, path = saved("gpt2", tmp_path)
    silent = tiny_program(tmp_path_factory)
    for arguments, message in [
        ([program, "text"], "--tokenizer is needed"),
        ([program, "--tokenizer", path], "expected at least 2 arguments, got 1"),
        ([silent, "text", "--tokenizer", path], "the program cannot write"),
        ([program, "text", "--tokenizer", path], "the tokenizer has .* tokens, more than the 61 of the"),
        ([program, "text", "--tokenizer", path, "--top-p", "2"], r"top_p must be in \(0, 1\], got 2"),
    ]:
        process = start_runner(["generate", *arguments])
        _, errors = process.communicate()
        assert process.returncode == 2, errors
        assert re.search(message, errors) and errors.count("\n") == 1, errors


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model with a chat template, and the program that the command line makes of it."""
    model = save_chat_model(tmp_path_factory.mktemp("chat") / "model")
    program = model.parent / "program.pte"
    options = {
        "model": model, "out": program, "context": 96, "max-length": 18, "queries": 1, "batch-size": 1,
        "targets": "v_proj", "layers": "1:1", "template": TEMPLATE, "verbalizer": json.dumps(WORDS),
    }  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main.run(["export", *(f"--{name}={value}" for name, value in options.items())])
    assert not ended.value.code
    return model, program


def runner_answers(*arguments: str | Path, text: str = "") -> list[dict[str, Any]]:
    process = start_runner([*arguments, "--json", "--max-new-tokens", "12"], stdin=subprocess.PIPE)
    output, errors = process.communicate(text)
    assert process.returncode == 0, errors
    lines = output.splitlines()
    answers = json.loads(lines[-1])["answers"]
    assert output.startswith("".join(answer["text"] + "\n" for answer in answers))
    return answers


def test_the_runner_answers_as_mobizo_generate(chat_model: tuple[Path, Path]) -> None:
    model, program = chat_model
    asked = ["The film is dull, part 3. How?", "One long ending looks fine."]
    tokenizer = model / "tokenizer.json"
    for raw in (False, True):
        settings = GenerateSettings(
            prompts=asked, model=str(model), dtype="float32", max_new_tokens=12, raw=raw
        )
        expected = generate(settings)["tokens"]
        more = ["--raw"] if raw else []
        found = runner_answers("generate", program, *asked, "--tokenizer", tokenizer, *more)
        assert [answer["tokens"] for answer in found] == expected


def test_the_runner_keeps_a_conversation(chat_model: tuple[Path, Path]) -> None:
    model, program = chat_model
    lines = ["The film is dull.", "", "How?", "One long ending looks fine, part 2.", "Why?", "Who?"]
    arguments = ("chat", program, "--tokenizer", model / "tokenizer.json", "--system", "Be short.")
    found = runner_answers(*arguments, text="\n".join(lines))
    assert len(found) == 5
    assert any(answer["reused"] > 20 for answer in found)
    encoder, trainer = ChatEncoder(AutoTokenizer.from_pretrained(model)), Trainer(program)
    messages = [("system", "Be short.")]
    for line, answer in zip(filter(None, lines), found, strict=True):
        messages.append(("user", line))
        while len(prompt := encoder.prompt(messages)) >= 96:
            del messages[1:3]
        assert list(trainer.generate(prompt, max_new_tokens=12).tokens) == answer["tokens"]
        messages.append(("assistant", answer["text"]))


def talk(chat_model: tuple[Path, Path], content: bytes, *options: str) -> tuple[int, int, list[str]]:
    """Exit status of a chat, answers, and the lines of its errors."""
    model, program = chat_model
    known: list[str | Path] = ["--tokenizer", model / "tokenizer.json", "--json", "--max-new-tokens", "3"]
    with TemporaryFile() as questions:
        questions.write(content)
        questions.seek(0)
        process = start_runner(["chat", program, *known, *options], stdin=questions)
    output, errors = process.communicate()
    answers = json.loads(output.splitlines()[-1])["answers"] if output else []
    return process.returncode, len(answers), errors.splitlines()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"\xff", "data: the prompt is not UTF-8 at byte 0 of a message of user"),
        (b"a\xe3", "data: the prompt is not UTF-8 at byte 1 of a message of user"),
        (b"\x80\x80", "data: the prompt is not UTF-8 at byte 0 of a message of user"),
        (b"Who<|end|>?", "data: the prompt holds the special token '<|end|>' in 'Who<|end|>?'"),
        (b"\xe2\x80\x8b" * 200, "and 95 fit: the program's context of 96 holds the answer, too"),
        (b"\xc2\xa0\xe2\x80\xa8", None),  # white space: nothing is asked
    ],
)
def test_a_line_that_cannot_be_asked_ends_no_chat(
    line: bytes, sentence: str | None, chat_model: tuple[Path, Path]
) -> None:
    """Nor is anything forgotten for its sake."""
    status, answers, errors = talk(chat_model, b"How?\n" + line + b"\nWhy?")
    assert (status, answers) == (0, 2)
    told = [error for error in errors if "invocation tokens" not in error]
    assert len(told) == (0 if sentence is None else 1)
    assert sentence is None or sentence in told[0]


def test_a_system_message_is_refused_before_anything_is_asked(chat_model: tuple[Path, Path]) -> None:
    for system, sentence in (("<|end|>", "holds the special token"), ("a b " * 99, "and 95 fit")):
        status, answers, errors = talk(chat_model, b"", "--system", system)
        assert (status, answers, len(errors)) == (2, 0, 1)
        assert sentence in errors[0]


def test_chat_says_that_the_adapter_is_off(chat_model: tuple[Path, Path]) -> None:
    status, answers, errors = talk(chat_model, b"How?\nWhy?\n")
    assert (status, answers) == (0, 2)
    assert errors == ["mobizo_runner: the prompt lacks the adapter's invocation tokens: it is off there"]


@pytest.mark.parametrize("text", [b"\xff", b"\xe3", b"\x80\x80", b"<|end|>\xf0"])
def test_prompts_that_are_not_utf8(text: bytes, chat_model: tuple[Path, Path]) -> None:
    model, program = chat_model
    process = start_runner(["generate", program, "--tokenizer", model / "tokenizer.json", os.fsdecode(text)])
    _, errors = process.communicate()
    assert process.returncode == 2 and "the prompt is not UTF-8 at byte" in errors


def test_answers_that_cannot_be_written(chat_model: tuple[Path, Path]) -> None:
    model, program = chat_model
    with open("/dev/full", "w") as full:
        process = start_runner(
            ["generate", program, "a", "b", "--tokenizer", model / "tokenizer.json"], stdout=full
        )
        _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "mobizo_runner: cannot write the output: No space left on device"


def test_a_standard_stream_that_is_closed(chat_model: tuple[Path, Path]) -> None:
    """No file that is opened later is read, or written to, in its place."""
    model, program = chat_model
    arguments: list[str | Path] = [program, "--tokenizer", model / "tokenizer.json"]
    cases: list[tuple[str, list[str | Path], str]] = [
        ("<&-", ["chat", *arguments], "cannot read the standard input"),
        (">&-", ["generate", *arguments, "a"], "cannot write the output"),
    ]
    for closed, command, sentence in cases:
        process = start_runner(command, shell=f'exec "$@" {closed}')
        _, errors = process.communicate()
        assert process.returncode == 1
        assert errors.splitlines()[-1] == f"mobizo_runner: {sentence}: Bad file descriptor"


def test_another_tokenizer_is_refused(chat_model: tuple[Path, Path], tmp_path: Path) -> None:
    _, program = chat_model
    tokenizer().save_pretrained(tmp_path)
    process = start_runner(["generate", program, "text", "--tokenizer", tmp_path / "tokenizer.json"])
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "tokenizer.json: not the tokenizer of the program, whose fingerprint is " in errors
