"""`mobizo train` inside ExecuTorch that begins with a readout, and the demo of both engines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import CONTEXT, QUERIES, adapter_bytes, options
from commands import run
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tiny_texts import WORDS

from mobizo_kernels.cli import demo
from mobizo_kernels.cli.report import demo_table
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.train import train
from mobizo_kernels.errors import InputError
from mobizo_kernels.executorch import Trainer


def head_of(directory: Path) -> dict[str, NDArray[np.float32]]:
    """A and B of the head's adapter in a PEFT directory."""
    tensors = load_file(directory / "adapter_model.safetensors")
    return {factor: tensors[f"base_model.model.lm_head.lora_{factor}.weight"] for factor in ("A", "B")}


def test_a_readout_to_begin_with(task: dict[str, Any], inside: dict[str, Any], tmp_path: Path) -> None:
    """The summary is that of eager; a run goes on from the start that is kept, and replays from it."""
    asked = {"start": "auto", "readout_rows": 40}
    out, journal = tmp_path / "out", tmp_path / "journal"
    values = {**inside, **asked, "out": out, "journal": journal}
    summary = train(TrainSettings(**values))
    eager = train(TrainSettings(**{**task, **asked, "dtype": "float32", "out": tmp_path / "eager"}))
    ours, theirs = summary["readout"], eager["readout"]
    assert ours.keys() == theirs.keys() and eager.keys() == summary.keys() - {"program_bytes"}
    for name in ("ridge", "rank", "rows"):
        assert ours[name] == pytest.approx(theirs[name])
    np.testing.assert_allclose(
        [loss for _, loss in ours["losses"]], [loss for _, loss in theirs["losses"]], rtol=1e-3
    )
    assert summary["auc_start"] == pytest.approx(eager["auc_start"], abs=0.05)
    inside_head, eager_head = (head_of(directory / "adapter") for directory in (out, tmp_path / "eager"))
    for factor in ("A", "B"):
        np.testing.assert_allclose(inside_head[factor], eager_head[factor], rtol=0.02, atol=2e-3)

    again = tmp_path / "again.pte"  # goes on from what the run in torch ended with
    shared = ("model", "template", "verbalizer", "max_length", "queries", "batch_size")
    arguments = [
        *options({name: task[name] for name in shared}),
        f"--adapter={tmp_path / 'eager' / 'adapter'}",
    ]
    assert run("export", *arguments, f"--out={again}") == 0
    begun = Trainer(again).evaluate(out / "dataset.safetensors", rows=task["eval_rows"])
    predictions = json.loads((tmp_path / "eager" / "metrics.json").read_text())["predictions"]
    assert begun.scores.argmax(axis=1).tolist() == predictions

    trainer = Trainer(inside["program"])
    trainer.load_adapter(tmp_path / "journal.start")
    trainer.replay(journal, until=summary["best_step"])
    tuned = load_file(out / "adapter.safetensors")
    assert all(trainer.adapter()[name].tobytes() == value.tobytes() for name, value in tuned.items())
    whole = adapter_bytes(out)
    journal.write_bytes(journal.read_bytes()[: -3 * (28 + 4 * QUERIES)])
    resumed = train(TrainSettings(**values, resume=True))
    assert resumed["readout"] is None and resumed["auc_start"] == summary["auc_start"]
    assert adapter_bytes(out) == whole
    kept = tmp_path / "journal.start" / "adapter_model.safetensors"
    content = kept.read_bytes()
    shutil.rmtree(kept.parent)  # made again, and kept again
    train(TrainSettings(**{**values, "start": "readout"}, resume=True))
    assert kept.read_bytes() == content and adapter_bytes(out) == whole
    kept.write_bytes(b"damaged")
    with pytest.raises(InputError, match="^journal: the start .* cannot be read"):
        train(TrainSettings(**values, resume=True))


def test_demo(
    inside: dict[str, Any], task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "in_fresh_process", lambda work, settings: work(settings))
    changes = {name: value for name, value in inside.items() if name != "engine"} | {"start": "auto"}
    found = demo.demo(tmp_path, ("executorch",), **changes, context=CONTEXT)
    found |= demo.demo(tmp_path, ("eager",), **task | {"start": "auto"})
    assert found["executorch"]["peft_rows_that_differ"] == 0
    assert found["executorch"]["peft_accuracy"] == found["executorch"]["accuracy_after"]
    table = demo_table(found).splitlines()
    *asked, question = found["executorch"]["written"]
    for answer, review in zip(asked, demo.REVIEWS, strict=True):  # the text loses its end
        text, words = answer["prompt"].split(" It", 1)
        assert review.startswith(text) and words == " was"
        for when in ("before", "after"):
            assert answer[when].startswith(tuple(word.strip() for word in WORDS.values())), answer
    assert any(answer["before"] != answer["after"] for answer in asked)
    assert question["prompt"] == demo.QUESTION and question["before"] == question["after"] != ""
    assert [line.split()[0] for line in table[-9:]].count("after") == 3
    assert table[1].split() == ["ExecuTorch", "torch"]
    for name, quality in (
        ("zero-shot ", "before"),
        ("after the readout", "start"),
        ("after tuning", "after"),
    ):
        row = next(line for line in table if name in line)
        assert row.count(f"{100 * found['eager'][f'accuracy_{quality}']:.1f} %") >= 1
    assert next(line for line in table if "base weights" in line).split()[-2:] == ["float32", "bfloat16"]
    assert next(line for line in table if "predicted otherwise" in line).split()[-4:] == [
        "0",
        "of",
        "21",
        "-",
    ]
