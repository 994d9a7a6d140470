"""What `mobizo train` made inside ExecuTorch, in the hands of `Trainer`: steps, adapters and replays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_runs import QUERIES, STEPS, metrics_of, options
from commands import contents, run
from safetensors.numpy import load_file

from mobizo_kernels.executorch import Trainer, read_description
from mobizo_kernels.journal import read_journal
from mobizo_kernels.journal.header import parse_header


def test_trainer(inside: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    trainer = Trainer(inside["program"])
    assert trainer.description == read_description(inside["program"])
    untuned = trainer.adapter()
    assert all((tensor == 0).all() for name, tensor in untuned.items() if "lora_B" in name)
    with pytest.raises(ValueError, match="no rows for nothing"):
        trainer.evaluate(finished / "dataset.safetensors", split="nothing")

    steps, validations = [], []
    result = trainer.train(
        finished / "dataset.safetensors",
        steps=STEPS,
        lr=0.05,
        eval_every=2,
        validation_rows=9,
        on_step=steps.append,
        on_evaluation=validations.append,
    )
    assert [report.step for report in steps] == list(range(STEPS))
    assert [report.loss for report in steps] == metrics_of(finished)["losses"]
    assert steps[0].losses.shape == (4,) and steps[0].projected_gradients.shape == (QUERIES,)
    assert [report.lr for report in steps] == pytest.approx([0.05 * (1 - t / STEPS) for t in range(STEPS)])
    assert result.evaluations == validations
    assert (result.steps, result.resumed_steps, result.best_step) == (
        STEPS,
        0,
        metrics_of(finished)["best_step"],
    )
    kept = trainer.adapter()
    for name, tensor in load_file(finished / "adapter.safetensors").items():
        assert kept[name].tobytes() == tensor.tobytes()

    trainer.save_adapter(tmp_path / "adapter.safetensors")
    assert (tmp_path / "adapter.safetensors").read_bytes() == (finished / "adapter.safetensors").read_bytes()
    trainer.save_peft(tmp_path / "peft")
    assert set(contents(tmp_path / "peft").values()) == set(contents(finished / "adapter").values())


def test_adapters_of_the_trainer(inside: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    tuned = load_file(finished / "adapter.safetensors")
    scored = metrics_of(finished)["predictions"]
    for source in (finished / "adapter", finished / "adapter.safetensors"):
        trainer = Trainer(inside["program"])
        trainer.load_adapter(source)
        assert all(trainer.adapter()[name].tobytes() == value.tobytes() for name, value in tuned.items())
        evaluation = trainer.evaluate(finished / "dataset.safetensors")
        assert evaluation.scores.argmax(axis=1).tolist() == scored
        assert evaluation.accuracy == (evaluation.scores.argmax(axis=1) == evaluation.labels).mean()

    shutil.copytree(finished / "adapter", tmp_path / "changed")
    config = tmp_path / "changed" / "adapter_config.json"
    values = json.loads(config.read_text())
    trainer = Trainer(inside["program"])
    config.write_text(json.dumps({**values, "lora_alpha": 5}))
    with pytest.raises(ValueError, match="changed: lora_alpha must be 16, that of the program, got 5"):
        trainer.load_adapter(tmp_path / "changed")
    assert all((tensor == 0).all() for name, tensor in trainer.adapter().items() if "lora_B" in name)
    with pytest.raises(OSError, match=r"adapter_config\.json"):
        trainer.load_adapter(tmp_path)


def test_replay(inside: dict[str, Any], finished: Path) -> None:
    trainer = Trainer(inside["program"])
    with pytest.raises(ValueError, match=f"until must be from 0 to {STEPS}"):
        trainer.replay(finished / "journal", until=STEPS + 1)
    assert trainer.replay(finished / "journal", until=metrics_of(finished)["best_step"]) <= STEPS
    tuned = load_file(finished / "adapter.safetensors")
    assert all(trainer.adapter()[name].tobytes() == value.tobytes() for name, value in tuned.items())
    assert len(read_journal(finished / "journal")[1]) == STEPS


@pytest.mark.parametrize("base_dtype", ["float32", "int8-dynamic"])
def test_replay_in_torch(base_dtype: str, inside: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    """A quantised program is made of a float32 model, whose fingerprint its journals have."""
    content, journal = (finished / "journal").read_bytes(), tmp_path / "journal"
    header, begin, _ = parse_header(content, journal)
    journal.write_bytes(replace(header, base_dtype=base_dtype).to_bytes() + content[begin:])
    best = metrics_of(finished)["best_step"]
    assert (
        run(
            "replay",
            str(journal),
            *options({"model": inside["model"], "until": best, "out": tmp_path / "run"}),
        )
        == 0
    )
    found = load_file(tmp_path / "run" / "adapter_model.safetensors")
    expected = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].tobytes() == tensor.tobytes(), name
