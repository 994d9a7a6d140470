"""`mobizo train --dry-run` says what a run would be and writes nothing; `--tensorboard` shows what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import contents, run, train
from tiny_texts import questions, save_chat_model, write_jsonl

from mobizo_kernels.journal import read_journal


def test_a_dry_run(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal, out = tmp_path / "journal", tmp_path / "out"
    options = ["--steps=9", "--accumulate=2", "--rank=4", "--eval-every=2", "--layers=1:1", "--tail=0"]
    assert train(inputs, out, *options, f"--journal={journal}", "--dry-run", "--json") == 0
    assert not list(tmp_path.iterdir())
    plan = json.loads(capsys.readouterr().out)
    assert (plan["steps"], plan["rows_of_a_step"], plan["groups"]) == (9, 8, 4)
    assert train(inputs, out, *options, f"--journal={journal}", "--start=zero") == 0
    header, _ = read_journal(journal)
    summary = json.loads((out / "metrics.json").read_text())
    assert plan["test_rows"] == summary["eval_rows"] == 8 and plan["validation_rows"] == 8
    assert sum(plan["classes"].values()) == plan["train_rows"] and set(plan["classes"]) == {"0", "1"}
    assert plan["times_round"] == round(72 / plan["train_rows"], 2)
    assert plan["adapted_linears"] == len(header.parameters) == 7
    assert plan["tuned_parameters"] == sum(out * rank for out, rank in (p.shape for p in header.parameters))
    validations = len(summary["validation"])
    # Validations; zero-shot, calibration, readout and its validation, test rows behind it and at the end.
    assert plan["rows_scored"] == validations * 8 + 8 + 8 + plan["train_rows"] + 8 + 8 + 8
    assert plan["tuning_seconds"] == pytest.approx(9 * plan["step_seconds"], abs=0.06)
    assert 0 < plan["step_seconds"] < 60 and plan["peak_rss_mb"] > 50
    lengths = plan["tokens_of_a_row"]
    assert lengths == sorted(lengths) and lengths[0] > 3

    before = contents(tmp_path)
    assert train(inputs, out, *options, f"--journal={journal}", "--resume", "--dry-run") == 0
    table = capsys.readouterr().out
    assert "data.csv: nothing has been written\n" in table and "of '0', " in table and "measured" in table
    assert contents(tmp_path) == before
    assert train(inputs, tmp_path / "x", "--engine=executorch", "--dry-run") == 2
    assert "mobizo: dry_run: expected --engine eager" in capsys.readouterr().err


def test_a_dry_run_of_free_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = save_chat_model(tmp_path / "model"), write_jsonl(tmp_path / "chat.jsonl", questions())
    common = [f"--model={model}", f"--data={data}", f"--out={tmp_path / 'out'}", "--dtype=float32"]
    assert run("train", *common, "--queries=2", "--batch-size=2", "--max-new-tokens=4", "--dry-run") == 0
    assert "free answers" in (table := capsys.readouterr().out)
    assert "; what the model writes comes on top" in table
    assert not (tmp_path / "out").exists()


def test_tensorboard_shows_the_run(inputs: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out, board = tmp_path / "out", tmp_path / "board"
    assert train(inputs, out, "--start=zero", "--steps=4", f"--tensorboard={board}") == 0
    found = accumulator.EventAccumulator(str(board)).Reload()
    shown = {
        tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }
    metrics = json.loads((out / "metrics.json").read_text())
    assert shown["train/loss"] == [
        (step, pytest.approx(loss)) for step, loss in enumerate(metrics["losses"], 1)
    ]
    validation = metrics["validation"]
    assert shown["validation/loss"] == [(p["step"], pytest.approx(p["loss"])) for p in validation]
    assert shown["validation/balanced_accuracy"] == [
        (p["step"], pytest.approx(p["balanced_accuracy"])) for p in validation
    ]
    assert len(shown["validation/accuracy"]) == len(validation)
    assert [value for _, value in shown["train/lr"]] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert all(value > 0 for _, value in shown["train/steps_per_second"])


def test_without_tensorboard(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mobizo_kernels.cli.tensorboard.find_spec", lambda name: None)
    assert train(inputs, tmp_path / "out", f"--tensorboard={tmp_path}") == 2
    assert "not installed (pip install 'mobizo-kernels[tensorboard]')" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
