"""Free answers inside ExecuTorch from the command line: what the engine "eager" does of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_texts import questions, save_chat_model, write_jsonl

from mobizo_kernels.cli import train_executorch
from mobizo_kernels.cli.report import training_table
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.train import train
from mobizo_kernels.errors import InputError
from mobizo_kernels.executorch import Trainer

REWARD = """
def spaces(prompt, answers, reference):
    assert prompt.startswith("<|start|>user") and reference
    return [1 / (1 + len(answer)) for answer in answers]
"""
METRICS = ("loss", "perplexity", "exact_match", "f1", "rouge_l")
ADAPTER = Path("adapter", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings for a tiny model and conversations, some of two answers."""
    directory = tmp_path_factory.mktemp("chat")
    rows: list[dict[str, Any]] = [*questions(24)]
    for row in questions(40)[24:]:
        said = (
            ("user", row["prompt"]),
            ("assistant", row["response"]),
            ("user", "And?"),
            ("assistant", "fine"),
        )
        rows.append({"messages": [{"role": role, "content": content} for role, content in said]})
    return {
        "model": str(save_chat_model(directory / "model", num_hidden_layers=1)),
        "data": str(write_jsonl(directory / "chat.jsonl", rows)),
        "queries": 2,
        "batch_size": 4,
        "targets": "v_proj",
        "layers": "0:0",
        "steps": 6,
        "lr": 0.5,
        "eval_rows": 5,
        "validation_rows": 6,
        "eval_every": 2,
        "max_new_tokens": 5,
    }


@pytest.fixture(scope="module")
def finished(task: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run, with its program and its journal."""
    out = tmp_path_factory.mktemp("finished")
    train(TrainSettings(**task, engine="executorch", out=out, overwrite=True, journal=out / "journal"))
    return out


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def test_it_does_what_eager_does(task: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    train(TrainSettings(**task, out=tmp_path, dtype="float32"))
    here, there = metrics_of(finished), metrics_of(tmp_path)
    assert set(here) - set(there) == {"program_bytes"}
    assert here["losses"] == pytest.approx(there["losses"], rel=1e-4)
    assert len(here["validation"]) == len(there["validation"]) == 4
    for ours, theirs in zip(here["validation"], there["validation"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert (
            ours["step"] == theirs["step"]
            and ours["balanced_accuracy"] is theirs["balanced_accuracy"] is None
        )
    for name in ("best_step", "predictions", "eval_rows", "steps", "skipped_steps"):
        assert here[name] == there[name]
    for when in ("before", "after"):
        for metric in METRICS:
            assert here[f"{metric}_{when}"] == pytest.approx(there[f"{metric}_{when}"], rel=1e-4)
    assert here["loss_after"] < here["loss_before"]
    ours, theirs = (load_file(out / ADAPTER) for out in (finished, tmp_path))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-3, atol=1e-5)
    assert "ROUGE-L" in training_table(here)


def test_a_run_goes_on_and_has_room_for_its_answers(task: dict[str, Any], finished: Path) -> None:
    whole, journal = (finished / ADAPTER).read_bytes(), finished / "journal"
    journal.write_bytes(journal.read_bytes()[: -2 * (28 + 4 * 2)])
    asked = {**task, "engine": "executorch", "out": finished, "journal": journal, "resume": True}
    train(TrainSettings(**asked))
    assert (finished / ADAPTER).read_bytes() == whole
    with pytest.raises(InputError, match=r"max_new_tokens: .*program.pte was exported for a context of"):
        train(TrainSettings(**{**asked, "max_new_tokens": 9}))
    with pytest.raises(
        InputError, match="max_new_tokens: the model has 128 positions and the longest prompt"
    ):
        train(TrainSettings(**{**asked, "max_new_tokens": 120}))


def test_rewards_are_those_of_eager(task: dict[str, Any], tmp_path: Path) -> None:
    """Of greedy answers; and a program without room for them is refused."""
    (tmp_path / "reward.py").write_text(REWARD)
    asked = {**task, "objective": f"{tmp_path / 'reward.py'}:spaces", "reward_shaping": "rank", "steps": 3}
    here, there = tmp_path / "here", tmp_path / "there"
    journal = tmp_path / "journal"
    train(TrainSettings(**asked, engine="executorch", out=here, journal=journal))
    train(TrainSettings(**asked, out=there, dtype="float32"))
    ours, theirs = metrics_of(here), metrics_of(there)
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-6) and len(set(ours["losses"])) > 1
    for our, their in zip(ours["validation"], theirs["validation"], strict=True):
        assert our["loss"] == pytest.approx(their["loss"], rel=1e-6) and our["balanced_accuracy"] is None
    (tmp_path / "reward.py").write_text(REWARD.replace("1 +", "2 +"))
    again = {**asked, "engine": "executorch", "out": here, "journal": journal, "resume": True}
    with pytest.raises(InputError, match="data is .* here, but the journal has"):
        train(TrainSettings(**again))
    (tmp_path / "reward.py").write_text("def spaces(prompt, answers, reference):\n    raise KeyError(prompt)")
    fresh = {**again, "journal": tmp_path / "other", "resume": False, "program": here / "program.pte"}
    with pytest.raises(InputError, match=r"objective: the reward failed \(KeyError"):
        train(TrainSettings(**fresh, overwrite=True))
    with pytest.raises(InputError, match=r"max_new_tokens: .*program.pte was exported for a context of"):
        train(TrainSettings(**{**fresh, "max_new_tokens": 9, "journal": None}, overwrite=True))


def test_a_program_that_does_not_write(
    task: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a perplexity, and nothing else to be scored."""
    quiet = Trainer(finished / "program.pte")
    object.__setattr__(quiet.description, "generation", None)
    monkeypatch.setattr(train_executorch.native(), "Trainer", lambda program, threads: quiet)
    asked = {**task, "program": finished / "program.pte", "engine": "executorch", "steps": 1}
    found = train(TrainSettings(**asked, out=tmp_path / "out"))
    assert math.isfinite(found["perplexity_after"])
    assert found["f1_after"] is None and found["exact_match_before"] is None
    assert training_table(found).splitlines()[2].split()[-3:] == ["-", "-", "-"]


def test_the_trainer_takes_texts(task: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    """Python's trainer makes the data set of the command, to the byte, and trains on it."""
    from mobizo_kernels.data import tokenizer_definition
    from mobizo_kernels.models import load_tokenizer

    definition, dataset = tmp_path / "tokenizer.json", tmp_path / "dataset.safetensors"
    definition.write_text(tokenizer_definition(load_tokenizer(task["model"])), encoding="utf-8")
    trainer = Trainer(finished / "program.pte")
    rows = {"steps": 6, "validation_rows": 6, "test_rows": 5}
    trainer.tokenize(task["data"], dataset, tokenizer=definition, **rows)
    assert dataset.read_bytes() == (finished / "dataset.safetensors").read_bytes()
    result = trainer.train(dataset, steps=6, lr=0.5, eval_every=2, validation_rows=6)
    assert result.best_step == metrics_of(finished)["best_step"]
    for texts, changed, message in (
        (task["data"], {"answers": "first"}, "answers must be all or last, got 'first'"),
        (task["data"], {"test_rows": 0}, "test_rows must be at least 1, got 0"),
        (tmp_path / "a.txt", {}, "texts: expected FILE.csv or FILE.jsonl"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.tokenize(texts, tmp_path / "other", tokenizer=definition, **{**rows, **changed})
    assert not (tmp_path / "other").exists()
    scored = trainer.evaluate(dataset, scores=False)
    assert scored.scores.shape == (0, len(load_tokenizer(task["model"])))
