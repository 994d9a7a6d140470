"""Training inside ExecuTorch from the command line and from Python: what eager does, and every bad input."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from cli_runs import QUERIES, STEPS, adapter_bytes, metrics_of, options
from commands import run
from safetensors.numpy import load_file
from tiny_texts import TEMPLATE, WORDS, save_model
from transformers import AutoModelForCausalLM

from mobizo_kernels.cli.interrupts import StopRequest
from mobizo_kernels.cli.progress import TuningBar
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.train import train
from mobizo_kernels.errors import InputError
from mobizo_kernels.executorch import Trainer, read_description


def test_export_describes_what_was_asked_for(inside: dict[str, Any]) -> None:
    found = read_description(inside["program"])
    wanted = {"queries": 2, "batch_size": 4, "groups": 4, "estimator": "two_sided", "max_length": 18}
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert [parameter.name for parameter in found.adapter.parameters] == [
        f"model.layers.{layer}.self_attn.v_proj.weight" for layer in (0, 1)
    ]
    assert len(found.candidate_tokens or ()) == 2
    assert found.tokenizer and found.dynamic_length


def test_it_does_what_eager_does(task: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    train(TrainSettings(**task, out=tmp_path, dtype="float32"))
    here, there = metrics_of(finished), metrics_of(tmp_path)
    assert here["losses"] == pytest.approx(there["losses"], rel=1e-4)
    assert len(here["validation"]) == len(there["validation"]) == 5
    for ours, theirs in zip(here["validation"], there["validation"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name in ("best_step", "predictions", "eval_rows", "steps", "skipped_steps"):
        assert here[name] == there[name]
    for when in ("before", "after"):
        assert here[f"accuracy_{when}"] == there[f"accuracy_{when}"]
        assert here[f"auc_{when}"] == pytest.approx(there[f"auc_{when}"], abs=0.02)
    ours, theirs = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (finished, tmp_path))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=1e-5)
    assert set(here) - set(there) == {"program_bytes"}
    assert here["peak_rss_mb"] > 50 and here["step_ms_median"] > 0


def test_files(inside: dict[str, Any], finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "adapter",
        "adapter.safetensors",
        "dataset.safetensors",
        "journal",
        "config.yaml",
        "learning_curve.png",
        "metrics.json",
    }
    assert adapter_bytes(finished) == (finished / "adapter.safetensors").read_bytes()
    base = AutoModelForCausalLM.from_pretrained(inside["model"])
    tuned = peft.PeftModel.from_pretrained(base, finished / "adapter")
    assert any(b.abs().max() > 0 for name, b in tuned.named_parameters() if "lora_B" in name)


def test_an_interrupted_run_goes_on(
    inside: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = tmp_path / "board"
    settings = TrainSettings(
        **inside, out=tmp_path, journal=tmp_path / "journal", overwrite=True, tensorboard=board
    )
    stop, show = StopRequest(), TuningBar.show_step

    def shown(self: TuningBar, step: int, *what: Any) -> None:
        show(self, step, *what)
        stop.signal = signal.SIGINT if step == 2 else None

    with monkeypatch.context() as patch:
        patch.setattr(TuningBar, "show_step", shown)
        summary = train(settings, stop)
    assert (summary["steps"], summary["best_step"], summary["interrupted"]) == (3, 3, True)
    assert metrics_of(tmp_path)["losses"] == metrics_of(finished)["losses"][:3]
    assert summary["accuracy_after"] is None
    shown = events.EventAccumulator(str(board)).Reload().Scalars("train/loss")
    assert [event.value for event in shown] == pytest.approx(metrics_of(tmp_path)["losses"])
    of_three = Trainer(inside["program"])
    assert of_three.replay(finished / "journal", until=3) == 3
    of_three.save_adapter(tmp_path / "replayed.safetensors")
    assert (tmp_path / "replayed.safetensors").read_bytes() == adapter_bytes(tmp_path)
    train(replace(settings, resume=True))
    assert adapter_bytes(tmp_path) == adapter_bytes(finished)


def test_a_run_that_exports_is_resumed(
    inside: dict[str, Any], finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, journal = tmp_path / "out", tmp_path / "journal"
    settings = {**inside, "program": None, "out": out, "journal": journal, "resume": True}
    train(TrainSettings(**settings))
    assert "lowering" in capfd.readouterr().err
    assert adapter_bytes(out) == adapter_bytes(finished)
    content = journal.read_bytes()
    assert content == (finished / "journal").read_bytes()

    journal.write_bytes(content[: -2 * (28 + 4 * QUERIES) - 5])
    (out / "metrics.json").unlink()
    train(TrainSettings(**settings))
    assert "lowering" not in capfd.readouterr().err
    assert journal.read_bytes() == content
    assert adapter_bytes(out) == adapter_bytes(finished)
    resumed, once = metrics_of(out), metrics_of(finished)
    assert resumed["losses"] == once["losses"]
    assert resumed["validation"] == once["validation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.5}, "optimizer: .*tiny.pte was exported for {'name': 'sgd', 'momentum': 0.0"),
        ({"optimizer": "adam"}, "optimizer: .*, got {'name': 'adam', 'beta1': 0.9"),
        ({"momentum": 1.5}, r"settings: momentum must be in \[0, 1\), got 1.5"),
        ({"dtype": "bfloat16"}, "dtype: the native trainer has float32 only, got bfloat16"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"seed": 2**63}, "seed: expected a signed 64-bit integer"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"lr": 1e39}, "lr must be at least 0 and finite in float32"),
        ({"steps": 2**31 - 1}, "steps: a data set file holds the batches of 16777216 steps of 4 rows, got"),
        ({"steps": STEPS, "journal": "{inputs}/journal"}, "journal: .* exists"),
        ({"queries": 3}, "queries: .*tiny.pte was exported for 2, got 3"),
        ({"batch_size": 2}, "batch_size: .* was exported for 4, got 2"),
        ({"estimator": "one_sided"}, "estimator: .* was exported for two_sided"),
        ({"distribution": "gaussian"}, "distribution: .* was exported for rademacher"),
        ({"tail": 1}, "tail: .* was exported for adapters from the tokens"),
        ({"quantization": "int8"}, "quantization: .* was exported for none, got int8"),
        ({"lowering": "delegated"}, "lowering: .* was exported for custom-op, got delegated"),
        ({"max_length": 30}, "max_length: .* was exported for 18, got 30"),
        ({"context": 64}, "context: .* was exported for 128, got 64"),
        ({"layers": "1:1"}, "other targets, layers, rank or alpha: expected 1 LoRA-B of"),
        ({"rank": 3}, r"expected 2 LoRA-B of \[16, 3\] scaled by 2, got 2 of \[16, 8\]"),
        ({"alpha": 3.0}, "scaled by 0.375, got 2 of .* scaled by 2"),
        ({"model": "{inputs}/wider"}, "model: .*tiny.pte was exported from .*, not from .*wider"),
        ({"program": "{inputs}/absent.pte"}, "program: .*absent.pte"),
        ({"program": "{inputs}/cut.pte"}, "program: .*cut.pte: not a training program, or cut short"),
        ({"program": "{inputs}/other.pte"}, "program: .*other.pte"),
        ({"verbalizer": '{"0": " great", "1": " terrible"}'}, "data: .*candidate_tokens must be those of"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input(
    options: dict[str, Any],
    message: str,
    inside: dict[str, Any],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    inputs = tmp_path_factory.mktemp("inputs")
    save_model(inputs / "wider", intermediate_size=64)
    content = inside["program"].read_bytes()
    (inputs / "journal").write_text("another run")
    (inputs / "cut.pte").write_bytes(content[: len(content) // 3])
    (inputs / "other.pte").write_text("no program")
    (tmp_path / "metrics.json").write_text("an earlier run")
    filled = {
        name: value.replace("{inputs}", str(inputs)) if isinstance(value, str) else value
        for name, value in options.items()
    }
    for name in {"program", "journal"} & filled.keys():
        filled[name] = Path(filled[name])
    with pytest.raises(InputError, match=message):
        train(TrainSettings(**{**inside, **filled}, out=tmp_path, overwrite=True))
    assert (tmp_path / "metrics.json").read_text() == "an earlier run"
    assert not (tmp_path / "adapter").exists()


def test_without_executorch(
    inside: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "mobizo_kernels.executorch", None)
    assert run("train", *options({**inside, "out": tmp_path / "out"})) == 2
    assert capsys.readouterr().err.startswith("mobizo: ")
    assert not (tmp_path / "out").exists()


def test_an_export_beyond_the_positions_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "model", max_position_embeddings=24)
    prompt = options({"template": TEMPLATE, "verbalizer": json.dumps(WORDS), "max_length": 100})
    assert run("export", f"--model={model}", *prompt, f"--out={tmp_path / 'a.pte'}") == 2
    error = "mobizo: max_length: expected at most 24, the positions of the model, got 100\n"
    assert capsys.readouterr().err.endswith(error)
    assert not (tmp_path / "a.pte").exists()


def test_an_export_that_is_refused_leaves_no_directory(
    inside: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new/deep/a.pte"
    prompt = options({"template": TEMPLATE, "verbalizer": json.dumps(WORDS)})
    assert run("export", f"--model={inside['model']}", *prompt, "--momentum=2", f"--out={out}") == 2
    assert "momentum" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_export_does_not_overwrite_unasked(
    inside: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = inside["program"].read_bytes()
    assert run("export", f"--model={inside['model']}", f"--out={inside['program']}") == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert inside["program"].read_bytes() == before
