"""`mobizo train --accumulate`: one estimate of several batches, with a journal that knows of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mobizo_kernels.cli import tuning
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.data import EncodedExample
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.lora import adapter_layers, load_adapter

RECORD = 28 + 4 * 2


def options(tmp_path: Path, *more: str) -> list[str]:
    given = ["--start=zero", "--steps=4", "--tail=0", "--batch-size=4", "--accumulate=3", *more]
    return [*given, f"--journal={tmp_path / 'journal'}"]


def test_a_step_is_one_of_all_rows(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run as one whose batches are the rows of three, up to rounding."""
    assert train(inputs, tmp_path / "several", *options(tmp_path)) == 0
    header, records = read_journal(tmp_path / "journal")
    assert header.batch_size == 12
    several = json.loads((tmp_path / "several" / "metrics.json").read_text())
    made = tuning.step_batches

    def joined(*arguments: object) -> object:
        return (sum(parts, []) for parts in made(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr("mobizo_kernels.cli.prepare.step_batches", joined)
    (tmp_path / "journal").unlink()
    assert train(inputs, tmp_path / "one", *options(tmp_path)) == 0
    one = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert several["losses"] == pytest.approx(one["losses"], rel=1e-5)
    other = read_journal(tmp_path / "journal")[1]
    assert torch.allclose(records.coeffs, other.coeffs, rtol=5e-3, atol=1e-5)


def test_resumed_and_replayed_to_the_bit(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, weights = tmp_path / "journal", Path("adapter", "adapter_model.safetensors")
    assert train(inputs, tmp_path / "once", *options(tmp_path)) == 0
    content = journal.read_bytes()
    journal.write_bytes(content[: -2 * RECORD])
    assert train(inputs, tmp_path / "again", *options(tmp_path, "--resume")) == 0
    assert journal.read_bytes() == content
    kept = load_file(tmp_path / "once" / weights)
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "once" / weights).read_bytes()

    model = load_adapter(
        AutoModelForCausalLM.from_pretrained(inputs / "model"), tmp_path / "once" / "adapter"
    )
    for layer in adapter_layers(model).values():
        layer.lora_b.data.zero_()
    replay(model, journal, json.loads((tmp_path / "once" / "metrics.json").read_text())["best_step"])
    for name, layer in adapter_layers(model).items():
        assert torch.equal(kept[f"base_model.model.{name}.lora_B.weight"], layer.lora_b)

    capsys.readouterr()
    assert (
        train(inputs, tmp_path / "x", *options(tmp_path, "--resume", "--batch-size=12", "--accumulate=1"))
        == 2
    )
    assert "data is '" in (said := capsys.readouterr().err) and " in 3 batches' there" in said


def test_the_native_trainer_refuses(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(inputs, tmp_path / "out", "--engine=executorch", "--accumulate=2") == 2
    assert (
        "mobizo: accumulate: --engine executorch makes each step of one batch, got 2"
        in capsys.readouterr().err
    )


def test_rows_of_a_step() -> None:
    rows = [EncodedExample([n], n % 2) for n in range(12)]
    common = {"template": "{text}", "verbalizer": "{}", "out": Path("x"), "batch_size": 2}
    batches = tuning.step_batches(rows, TrainSettings(**common))  # type: ignore[arg-type]
    pairs = tuning.step_batches(rows, TrainSettings(**common, accumulate=2))  # type: ignore[arg-type]
    assert [next(pairs) for _ in range(4)] == [[next(batches), next(batches)] for _ in range(4)]
