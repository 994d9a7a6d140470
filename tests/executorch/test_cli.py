"""Training inside ExecuTorch from the command line and from Python: what eager does, and every bad input."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tiny_texts import TEMPLATE, WORDS, reviews, save_chat_model, save_model, write_csv
from transformers import AutoModelForCausalLM

from mobizo_kernels.cli import demo, main
from mobizo_kernels.cli.interrupts import StopRequest
from mobizo_kernels.cli.progress import TuningBar
from mobizo_kernels.cli.report import demo_table
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.train import train
from mobizo_kernels.errors import InputError
from mobizo_kernels.executorch import Trainer, read_description
from mobizo_kernels.journal import read_journal
from mobizo_kernels.journal.header import parse_header

STEPS = 7
QUERIES = 2
CONTEXT = 128


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings for a tiny model and little data."""
    directory = tmp_path_factory.mktemp("task")
    return {
        "model": str(save_chat_model(directory / "model")),
        "data": str(write_csv(directory / "data.csv", reviews())),
        "template": TEMPLATE,
        "verbalizer": json.dumps(WORDS),
        "max_length": 18,
        "queries": QUERIES,
        "batch_size": 4,
        "targets": "v_proj",
        "layers": "0:1",
        "steps": STEPS,
        "lr": 0.05,
        "eval_rows": 21,
        "validation_rows": 9,
        "eval_every": 2,
        "start": "zero",
    }


@pytest.fixture(scope="module")
def inside(task: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same inside ExecuTorch, with a program that `mobizo export` made."""
    program = tmp_path_factory.mktemp("program") / "new" / "tiny.pte"
    shared = ("model", "template", "verbalizer", "max_length", "queries", "batch_size", "targets", "layers")
    values = {name: task[name] for name in shared} | {"context": CONTEXT, "out": program}
    assert run("export", *options(values)) == 0
    return {**task, "engine": "executorch", "program": program}


@pytest.fixture(scope="module")
def finished(inside: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run, with its journal."""
    out = tmp_path_factory.mktemp("finished")
    train(TrainSettings(**inside, out=out, overwrite=True, journal=out / "journal"))
    return out


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main.run(arguments)
    return int(exit_info.value.code or 0)


def options(values: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


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
