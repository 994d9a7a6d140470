"""Runs that end in the middle: killed, out of disk, stopped by a callback. All go on to the same adapter."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from crash import crash_runs, run_to_end, start_runner
from helpers import full_disk
from programs import Unchanged, assert_same_adapter, eager_twin, tiny_dataset

from mobizo_kernels.executorch import StepReport, Trainer
from mobizo_kernels.journal import read_journal, replay

STEPS: dict[str, Any] = {"steps": 9, "eval_every": 2}
RECORD = 28 + 4 * 2  # bytes of a step with two queries


@pytest.fixture
def whole(program: Path, dataset: Path, tmp_path: Path) -> tuple[Trainer, bytes]:
    """A run that was never interrupted: its trainer and its journal."""
    trainer = Trainer(program)
    trainer.train(dataset, journal=tmp_path / "whole.journal", **STEPS)
    return trainer, (tmp_path / "whole.journal").read_bytes()


def test_killed_and_resumed(program: Path, dataset: Path, tmp_path: Path) -> None:
    outcome = crash_runs(program, dataset, tmp_path, kills=5, steps=60, rng=random.Random(1))
    assert outcome.kills == 5
    assert outcome.runs >= 1


def test_resumed_from_any_length(
    program: Path, dataset: Path, tmp_path: Path, whole: tuple[Trainer, bytes]
) -> None:
    """A torn record is cut off; what the run then adds is what it would have been."""
    expected, journal = whole
    path, header = tmp_path / "run.journal", len(journal) - 9 * RECORD
    for size in [header, header + 1, header + RECORD - 1, header + RECORD, len(journal) - 7, len(journal)]:
        path.write_bytes(journal[:size])
        trainer = Trainer(program)
        result = trainer.train(dataset, journal=path, resume=True, **STEPS)
        assert result.resumed_steps == (size - header) // RECORD
        assert path.read_bytes() == journal
        assert_same_adapter(trainer, expected)
    path.write_bytes(journal[:-1] + bytes([journal[-1] ^ 1]))
    trainer = Trainer(program)
    assert trainer.train(dataset, journal=path, resume=True, **STEPS).resumed_steps == 8
    assert path.read_bytes() == journal


def test_a_damaged_journal_is_left_alone(
    program: Path, dataset: Path, tmp_path: Path, whole: tuple[Trainer, bytes]
) -> None:
    _, journal = whole
    path, header, trainer = tmp_path / "run.journal", len(journal) - 9 * RECORD, Trainer(program)
    cases = {
        header + 4 * RECORD + 9: "run.journal: the record of step 4 is damaged",
        header - 9: "run.journal: the header is damaged",
        3: "run.journal: not a journal",
    }
    for place, message in cases.items():
        damaged = bytearray(journal)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        for use in (
            lambda: trainer.train(dataset, journal=path, resume=True, **STEPS),
            lambda: trainer.replay(path),
        ):
            with Unchanged(trainer), pytest.raises(ValueError, match=message):
                use()
        assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"run_seed": 1}, "run_seed"),
        ({"eps": 0.02}, "eps"),
        ({"lr": 0.3}, "lr"),
        ({"lr_schedule": "cosine"}, "lr_schedule"),
        ({"steps": 10}, "steps"),
        ({"normalize": False}, "normalize"),
    ],
    ids=str,
)
def test_resuming_with_other_settings(
    options: dict[str, Any],
    field: str,
    program: Path,
    dataset: Path,
    tmp_path: Path,
    whole: tuple[Trainer, bytes],
) -> None:
    path, trainer = tmp_path / "whole.journal", Trainer(program)
    message = f"whole.journal: {field} is .* here, but the journal has"
    with Unchanged(trainer), pytest.raises(ValueError, match=message):
        trainer.train(dataset, journal=path, resume=True, **{**STEPS, **options})
    with Unchanged(trainer), pytest.raises(ValueError, match="whole.journal: the journal exists already"):
        trainer.train(dataset, journal=path, **STEPS)
    assert path.read_bytes() == whole[1]


def test_resuming_with_other_data(
    program: Path, tmp_path: Path, rng: torch.Generator, whole: tuple[Trainer, bytes]
) -> None:
    path, trainer = tmp_path / "whole.journal", Trainer(program)
    other = tiny_dataset(tmp_path / "other.safetensors", rng)
    with Unchanged(trainer), pytest.raises(ValueError, match="whole.journal: data is"):
        trainer.train(other, journal=path, resume=True, **STEPS)


@pytest.mark.parametrize("where", ["no_such_folder/run.journal", "", "/proc/run.journal"])
def test_unwritable_journal(where: str, program: Path, dataset: Path, tmp_path: Path) -> None:
    trainer = Trainer(program)
    with Unchanged(trainer), pytest.raises((OSError, ValueError), match="journal"):
        trainer.train(dataset, journal=tmp_path / where, **STEPS)
    assert os.listdir(tmp_path) == ["data.safetensors"]


def test_a_link_that_leads_nowhere_is_no_journal(
    trainer: Trainer, program: Path, dataset: Path, tmp_path: Path
) -> None:
    """Nor is one made where it leads; the command says so before it reads out."""
    (link := tmp_path / "link").symlink_to("nowhere")
    for resume in (False, True):
        with Unchanged(trainer), pytest.raises(ValueError, match=f"journal: {link} is a link that leads no"):
            trainer.train(dataset, journal=link, resume=resume, **STEPS)
    process = start_runner(
        ["train", program, dataset, "--resume", f"--journal={link}", f"--adapter-out={tmp_path / 'a'}"]
    )
    output, errors = process.communicate(timeout=60)
    told = f"mobizo_runner: --journal: {link} is a link that leads nowhere\n"
    assert (process.returncode, output, errors) == (2, "", told)
    assert sorted(os.listdir(tmp_path)) == ["data.safetensors", "link"]


def test_disk_full(program: Path, dataset: Path, tmp_path: Path, whole: tuple[Trainer, bytes]) -> None:
    """The run stops with the adapter of the last recorded step; given room it goes on to the same end."""
    expected, journal = whole
    path, trainer = tmp_path / "run.journal", Trainer(program)
    with full_disk(len(journal) - 4 * RECORD - 5), pytest.raises(OSError, match="step 4.*run.journal"):
        trainer.train(dataset, journal=path, **STEPS)
    assert path.read_bytes() == journal[: -5 * RECORD]
    model = eager_twin()
    assert replay(model, path) == 4
    assert_same_adapter(trainer, model)
    again = Trainer(program)
    assert again.train(dataset, journal=path, resume=True, **STEPS).resumed_steps == 4
    assert_same_adapter(again, expected)


def test_disk_full_of_an_adapter(program: Path, tmp_path: Path, whole: tuple[Trainer, bytes]) -> None:
    path, folder = tmp_path / "out" / "adapter.safetensors", tmp_path / "out"
    folder.mkdir()
    path.write_bytes(b"what was there")
    with full_disk(700), pytest.raises(OSError, match="adapter.safetensors"):
        whole[0].save_adapter(path)
    assert path.read_bytes() == b"what was there"
    assert os.listdir(folder) == ["adapter.safetensors"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_stopped_by_a_callback(
    error: type[BaseException],
    program: Path,
    dataset: Path,
    tmp_path: Path,
    whole: tuple[Trainer, bytes],
) -> None:
    path, trainer = tmp_path / "run.journal", Trainer(program)

    def stop(report: StepReport) -> None:
        if report.step == 4:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        trainer.train(dataset, journal=path, on_step=stop, **STEPS)
    assert len(read_journal(path)[1]) == 5
    model = eager_twin()
    replay(model, path)
    assert_same_adapter(trainer, model)
    again = Trainer(program)
    again.train(dataset, journal=path, resume=True, **STEPS)
    assert_same_adapter(again, whole[0])


def test_two_runs_cannot_write_one_journal(program: Path, dataset: Path, tmp_path: Path) -> None:
    path, trainer, other = tmp_path / "run.journal", Trainer(program), Trainer(program)

    def start_another(report: StepReport) -> None:
        with pytest.raises(ValueError, match="run.journal: another process is writing"):
            other.train(dataset, journal=path, resume=True, **STEPS)

    trainer.train(dataset, journal=path, on_step=start_another, **STEPS)
    assert len(read_journal(path)[1]) == 9


def test_exit_codes_of_the_runner(program: Path, dataset: Path, tmp_path: Path) -> None:
    """2 for input that does not fit, 1 for a disk that is full; each says one sentence."""
    out = tmp_path / "adapter.safetensors"
    train = ["train", program, dataset, "--adapter-out", out, "--steps", "3", "--quiet"]
    run_to_end(train)
    out.unlink()
    journal = tmp_path / "run.journal"
    cases = [
        (["train", program], 2, "expected 2 files, got 1"),
        ([*train, "--eps", "x"], 2, "--eps must be a number, got 'x'"),
        ([*train, "--adapter-in", dataset], 2, "data.safetensors"),
        (["train", dataset, dataset, "--adapter-out", out], 2, "not a training program"),
        ([*train, "--adapter-out", tmp_path / "no_such" / "file"], 2, "no_such"),
        (["replay", program, tmp_path / "no.journal", "--adapter-out", out], 2, "no.journal"),
        (["frobnicate"], 2, "unknown command 'frobnicate'"),
    ]
    for arguments, code, message in cases:
        process = start_runner(arguments)
        _, errors = process.communicate()
        assert process.returncode == code, errors
        assert errors.startswith("mobizo_runner: ")
        assert message in errors
    with full_disk(300):
        process = start_runner([*train, "--journal", journal])
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "run.journal" in errors
    assert not out.exists()
