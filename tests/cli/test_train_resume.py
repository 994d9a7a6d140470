"""`mobizo train` with a journal: cut off anywhere and resumed, it gives what a run in one go gives."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from crash import crash_training, tiny_task
from helpers import full_disk
from safetensors.torch import load_file
from tiny_texts import TEMPLATE, WORDS, reviews, save_model, write_csv

from mobizo_kernels.cli import tuning
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.train import train
from mobizo_kernels.errors import InputError
from mobizo_kernels.journal import JournalWriter, read_journal, replay
from mobizo_kernels.lora import adapter_layers, load_adapter
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.models import load_model

STEPS = 7
RECORD = 28 + 4 * 2


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("task")
    return {
        "model": str(save_model(directory / "model")),
        "data": str(write_csv(directory / "data.csv", reviews())),
        "dtype": "float32",
        "template": TEMPLATE,
        "verbalizer": json.dumps(WORDS),
        "steps": STEPS,
        "queries": 2,
        "batch_size": 4,
        "lr": 0.4,
        "stop_unsteady": False,
        "eval_rows": 10,
        "validation_rows": 8,
        "eval_every": 2,
    }


def weights(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("schedule", "rule"),
    [
        ("constant", {}),
        ("linear", {}),
        ("cosine", {"momentum": 0.5, "weight_decay": 0.1}),
        ("linear", {"optimizer": "adam", "lr": 0.05}),
        ("linear", {"start": "zero"}),
    ],
    ids=str,
)
def test_cut_off_anywhere(schedule: str, rule: dict[str, Any], task: dict[str, Any], tmp_path: Path) -> None:
    task = {**task, "lr_schedule": schedule, **rule}
    once = train(TrainSettings(**task, out=tmp_path / "once", journal=tmp_path / "journal"))
    record = json.loads((tmp_path / "once" / "metrics.json").read_text())
    content, expected = (tmp_path / "journal").read_bytes(), weights(tmp_path / "once")
    header, records = read_journal(tmp_path / "journal")
    assert (header.lr_schedule, header.steps, header.batch_size) == (schedule, STEPS, 4)
    assert len(records) == STEPS
    train(TrainSettings(**task, out=tmp_path / "plain"))
    assert weights(tmp_path / "plain") == expected

    start = len(content) - STEPS * RECORD
    for size in (start, start + RECORD + 5, start + 4 * RECORD, len(content) - 1, len(content)):
        out, journal = tmp_path / str(size) / "out", tmp_path / str(size) / "out" / "journal"
        (out / ".writing-abc").mkdir(parents=True)  # as a run leaves it that ends while it writes its results
        journal.write_bytes(content[:size])
        if (kept := tmp_path / "journal.start").is_dir():
            copytree(kept, journal.with_name("journal.start"))
        summary = train(TrainSettings(**task, out=out, journal=journal, resume=True))
        assert journal.read_bytes() == content
        assert weights(out) == expected
        assert not list(out.glob(".*"))
        same = ("best_step", "steps", "accuracy_after", "auc_before", "auc_after", "balanced_accuracy_after")
        assert {name: summary[name] for name in same} == {name: once[name] for name in same}
        resumed = json.loads((out / "metrics.json").read_text())
        assert resumed["validation"] == record["validation"]
        done = (size - start) // RECORD
        assert resumed["losses"] == record["losses"]
        assert (summary["step_ms_median"] is None) == (done == STEPS)


@pytest.mark.parametrize(
    ("rule", "room"),
    [
        ({}, None),
        ({}, 20_000),
        ({"momentum": 0.9, "weight_decay": 0.1}, None),
        ({"optimizer": "adam", "lr": 0.05}, 0),
    ],
    ids=str,
)
def test_rows_that_come_round_again(
    rule: dict[str, Any],
    room: int | None,
    tmp_path: Path,
    task: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resumed run meets a row in another batch than the run that was cut did: it makes the same of it,
    whether there is room to keep all rows, some or none.
    """
    task = {
        **task,
        "train_rows": 24,
        "batch_size": 8,
        "steps": 10,
        "start": "zero",
        **rule,
    }  # three steps a time round
    if room is not None:
        monkeypatch.setattr(tuning, "StateStore", lambda _: StateStore(room))
    journal = tmp_path / "journal"
    train(TrainSettings(**task, out=tmp_path / "once", journal=journal))
    content, record = journal.read_bytes(), json.loads((tmp_path / "once" / "metrics.json").read_text())
    for done in (1, 4, 8):
        out = tmp_path / str(done)
        journal.write_bytes(content[: len(content) - (10 - done) * RECORD])
        train(TrainSettings(**task, out=out, journal=journal, resume=True))
        assert journal.read_bytes() == content
        assert weights(out) == weights(tmp_path / "once")
        resumed = json.loads((out / "metrics.json").read_text())
        assert [resumed[name] for name in ("losses", "validation")] == [
            record["losses"],
            record["validation"],
        ]


def test_killed_the_third_time_round(tmp_path: Path) -> None:
    assert len(crash_training(tiny_task(tmp_path), tmp_path, steps=12, stops=[6, 8])) == 2


def test_resuming_what_never_began(task: dict[str, Any], tmp_path: Path) -> None:
    train(TrainSettings(**task, out=tmp_path / "out", journal=tmp_path / "journal", resume=True))
    assert len(read_journal(tmp_path / "journal")[1]) == STEPS


def test_another_run_is_refused(task: dict[str, Any], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    train(TrainSettings(**task, out=tmp_path / "out", journal=journal))
    content = journal.read_bytes()
    with pytest.raises(InputError, match=f"journal: '{journal}' exists; name another"):
        train(TrainSettings(**task, out=tmp_path / "again", journal=journal))
    for change, message in (
        ({"max_length": 10}, "data is '.*' there, but"),
        ({"steps": STEPS + 1}, "steps is 7 there, but 8 in this run"),
        ({"lr_schedule": "cosine"}, "lr_schedule is 'linear' there"),
        ({"rank": 4}, "parameters is "),
        ({"seed": 1}, "run_seed is 0 there"),
        ({"alpha": 64.0}, "scaling of model.layers.1.* is 2.0 there, but 8.0 in this run"),
        ({"tail": 1}, r"invocation_tokens is \[.*\] there, but \[.*\] in this run"),
        ({"dtype": "bfloat16"}, "base_"),
        ({"momentum": 0.5}, "optimizer is {'name': 'sgd', 'momentum': 0.0, .*} there"),
    ):
        with pytest.raises(InputError, match=f"journal {journal}: {message}"):
            train(TrainSettings(**{**task, **change}, out=tmp_path / "again", journal=journal, resume=True))
    with pytest.raises(InputError, match="resume: expected --journal FILE with it"):
        train(TrainSettings(**task, out=tmp_path / "again", resume=True))
    journal.write_bytes(content[:-RECORD] + b"x" + content[-RECORD:])
    with pytest.raises(InputError, match="journal .*: the record of step 6 is damaged"):
        train(TrainSettings(**task, out=tmp_path / "again", journal=journal, resume=True))
    assert not (tmp_path / "again").exists()


def test_a_full_disk_loses_nothing(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(TrainSettings(**task, out=tmp_path / "once"))
    settings = TrainSettings(**task, out=tmp_path / "out", journal=tmp_path / "journal", resume=True)
    append = JournalWriter.append

    def fail_at_step_3(self: JournalWriter, step: int, record: Any) -> None:
        with full_disk((tmp_path / "journal").stat().st_size + (9 if step == 3 else RECORD)):
            append(self, step, record)

    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match="step 3 cannot be recorded") as caught,
    ):
        patch.setattr(JournalWriter, "append", fail_at_step_3)
        train(settings)
    assert "go on with --resume" in str(caught.value)
    assert len(read_journal(tmp_path / "journal")[1]) == 3 and not (tmp_path / "out").exists()
    train(settings)
    assert weights(tmp_path / "out") == weights(tmp_path / "once")


@pytest.mark.parametrize(
    ("at", "harm", "message"),
    [
        (4, Path.unlink, "was removed or renamed"),
        (5, lambda path: os.truncate(path, path.stat().st_size - RECORD), "another program changed it"),
        (STEPS, Path.unlink, "was removed or renamed"),
    ],
    ids=["removed", "cut", "removed at the end"],
)
def test_a_lost_journal_leaves_the_results(
    at: int,
    harm: Callable[[Path], None],
    message: str,
    task: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run ends where it was, with the adapter that is the best so far, in one sentence."""
    task = {**task, "start": "zero"}
    once, out, journal = tmp_path / "once", tmp_path / "out", tmp_path / "journal"
    train(TrainSettings(**task, out=once, journal=tmp_path / "whole"))
    whole, append = json.loads((once / "metrics.json").read_text()), JournalWriter.append

    def harmed(self: JournalWriter, step: int, record: Any) -> None:
        if step == at:
            harm(journal)
        append(self, step, record)
        if step + 1 == at == STEPS:
            harm(journal)

    monkeypatch.setattr(JournalWriter, "append", harmed)
    with pytest.raises(InputError, match=f"^journal {journal} .*{message}.* after {at} steps, .*out$"):
        train(TrainSettings(**task, out=out, journal=journal))
    found = json.loads((out / "metrics.json").read_text())
    assert (found["steps"], found["stopped"]) == (at, at < STEPS)
    assert found["losses"] == whole["losses"][:at]
    assert found["validation"][-1]["step"] == at
    model, _ = load_model(task["model"], "float32")
    load_adapter(model, out / "adapter")
    for layer in adapter_layers(model).values():
        layer.lora_b.data.zero_()
    replay(model, tmp_path / "whole", found["best_step"])
    kept = load_file(out / "adapter" / "adapter_model.safetensors")
    for name, layer in adapter_layers(model).items():
        assert torch.equal(kept[f"base_model.model.{name}.lora_B.weight"], layer.lora_b)
