"""`mobizo chat`: every answer has the whole conversation in mind, as far as the model has room."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from commands import run
from tiny_texts import save_chat_model

TOKENS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_chat_model(directory)
    return directory


def answered(
    model: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str
) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    options = [f"--model={model}", "--dtype=float32", f"--max-new-tokens={TOKENS}", "--json", *more]
    assert run("chat", *options) == 0
    answers: list[str] = json.loads(capsys.readouterr().out.splitlines()[-1])["answers"]
    return answers


def by_hand(model: Path, conversation: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `mobizo generate --raw` makes of the conversation as the template writes it."""
    options = [f"--model={model}", "--dtype=float32", f"--max-new-tokens={TOKENS}", "--json", "--raw"]
    assert run("generate", conversation, *options) == 0
    result: Any = json.loads(capsys.readouterr().out.splitlines()[-1])
    answer: str = result["answers"][0]
    return answer


def turn(role: str, text: str) -> str:
    return f"<|start|>{role}\n{text}<|end|>\n"


def test_what_was_said_before_is_in_mind(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = answered(
        model, "The film?\n\n  Is the score fresh? \n", monkeypatch, capsys, "--system=Be dull."
    )
    said = turn("system", "Be dull.") + turn("user", "The film?")
    assert first == by_hand(model, f"{said}<|start|>assistant\n", capsys)
    if first:
        said += turn("assistant", first)
        said += turn("user", "Is the score fresh?")
    assert second == by_hand(model, f"{said}<|start|>assistant\n", capsys)


def test_answers_are_printed(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = answered(model, "The film?", monkeypatch, capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO("The film?"))
    assert run("chat", f"--model={model}", "--dtype=float32", f"--max-new-tokens={TOKENS}") == 0
    assert capsys.readouterr().out == f"{answers[0]}\n"


def test_the_oldest_is_forgotten(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_chat_model(tmp_path, max_position_embeddings=60)
    questions = [f"Is the film number {number} fresh?" for number in range(6)]
    answers = answered(tmp_path, "\n".join(questions), monkeypatch, capsys)
    assert len(answers) == 6 and "the oldest question and its answer are forgotten" in caplog.text


def test_what_cannot_be_asked_is_left_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_chat_model(tmp_path, max_position_embeddings=60)
    plain = answered(tmp_path, "The film?", monkeypatch, capsys)
    lines = "\n".join(["the film " * 60, "The film?", "half a \udcff"])
    assert answered(tmp_path, lines, monkeypatch, capsys) == plain
    assert "question: the model has 60 positions, expected 6 of them for an answer, got " in caplog.text
    assert caplog.text.count("it is left out") == 2
