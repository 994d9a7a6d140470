"""A readout from the command line of the native trainer."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from crash import run_to_end, start_runner
from programs import DEFAULTS
from readout_tasks import USED, Task

from mobizo_kernels.journal.file import JournalFile


def test_the_runner(plain: Task, tmp_path: Path) -> None:
    """Its start is beside the journal: a run that goes on takes it, and so does a replay."""
    journal, start = tmp_path / "journal", tmp_path / "journal.start.safetensors"
    train: list[Any] = [
        "train",
        plain.program,
        plain.dataset,
        "--start",
        "readout",
        "--readout-rows",
        str(USED),
    ]
    train += ["--steps", "6", "--lr", "0.05", "--keep", "last", "--threads", "1", "--journal", journal]
    run = start_runner([*train, "--adapter-out", tmp_path / "whole.safetensors", "--json"])
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert f"read out {USED} rows in " in output
    readout = json.loads(output.splitlines()[-1])["readout"]
    trainer, found = plain.native()
    assert (readout["ridge"], readout["rank"], readout["rows"]) == (found.ridge, 1, USED)
    assert dict(map(tuple, readout["losses"])).keys() == found.losses.keys()
    whole = (tmp_path / "whole.safetensors").read_bytes()
    trainer.save_adapter(tmp_path / "same.safetensors")
    assert start.read_bytes() == (tmp_path / "same.safetensors").read_bytes()
    trainer.train(plain.dataset, steps=6, lr=0.05, keep="last")
    trainer.save_adapter(tmp_path / "same.safetensors")
    assert whole == (tmp_path / "same.safetensors").read_bytes()

    journal.write_bytes(journal.read_bytes()[: -3 * (28 + 4 * DEFAULTS["queries"])])
    run_to_end([*train, "--resume", "--adapter-out", tmp_path / "resumed.safetensors", "--quiet"])
    assert (tmp_path / "resumed.safetensors").read_bytes() == whole
    replayed = ["replay", plain.program, journal, "--adapter-out", tmp_path / "replayed.safetensors"]
    for more in ([], ["--adapter-in", start]):
        run_to_end([*replayed, *more])
        assert (tmp_path / "replayed.safetensors").read_bytes() == whole
    content = start.read_bytes()
    again = start_runner([*replayed[:-1], start])
    assert "is the same file as the start of JOURNAL" in again.communicate()[1] and again.returncode == 2
    assert start.read_bytes() == content
    run_to_end(["evaluate", plain.program, plain.dataset, "--adapter", tmp_path / "whole.safetensors"])
    again = start_runner([*train[:-1], tmp_path / "none/journal", "--adapter-out", tmp_path / "other"])
    assert "--journal: " in again.communicate()[1] and again.returncode == 2  # before anything is read out
    for more, message in (
        ([], f"{journal} exists: name another journal, or resume"),
        (["--resume", "--adapter-out", start], "is the same file as the start of --journal"),
    ):
        again = start_runner([*train, "--adapter-out", tmp_path / "other.safetensors", *more])
        _, errors = again.communicate()
        assert again.returncode == 2 and message in errors and errors.count("\n") == 1
    start.unlink()  # of other rows than those of the run: refused, and not kept for the next try
    again = start_runner(
        [*train, "--resume", "--adapter-out", tmp_path / "other.safetensors", "--readout-rows", "10"]
    )
    assert again.communicate()[1].count("\n") == 1 and again.returncode == 2 and not start.exists()
    with contextlib.closing(JournalFile.open(journal)):  # another run, whose start is its own
        again = start_runner([*train, "--resume", "--adapter-out", tmp_path / "other.safetensors"])
        assert "another process is writing this file" in again.communicate()[1] and not start.exists()
    run_to_end([*train, "--resume", "--adapter-out", tmp_path / "resumed.safetensors", "--quiet"])
    assert (tmp_path / "resumed.safetensors").read_bytes() == whole
    assert start.read_bytes() == content  # made again, and kept
    start.write_bytes(b"damaged")
    again = start_runner([*train, "--resume", "--adapter-out", tmp_path / "other.safetensors"])
    _, errors = again.communicate()
    assert again.returncode == 2 and "journal.start.safetensors" in errors and errors.count("\n") == 1


def test_the_runner_begins_with_a_readout_where_it_can(
    plain: Task, tmp_path: Path, rng: torch.Generator
) -> None:
    """Unless it is given an adapter; what an earlier run with this journal began with is then gone."""
    journal, start = tmp_path / "journal", tmp_path / "journal.start.safetensors"
    train: list[Any] = ["train", plain.program, plain.dataset, "--steps", "2", "--keep", "last", "--json"]
    train += ["--journal", journal, "--no-stop-unsteady"]

    def outcome(name: str, *more: Any) -> tuple[dict[str, Any], str]:
        journal.unlink(missing_ok=True)
        run = start_runner([*train, "--adapter-out", tmp_path / name, *more])
        output, errors = run.communicate()
        assert run.returncode == 0, errors
        return json.loads(output.splitlines()[-1]), errors

    first, _ = outcome("first")
    assert first["readout"]["rank"] == 1 and start.exists()
    for more in (["--adapter-in", tmp_path / "first"], ["--start", "zero"]):
        start.touch()
        found, errors = outcome("second", *more)
        assert found["readout"] is None and not start.exists() and not errors
    one_label = tmp_path / "one_label.safetensors"
    plain.write(one_label, rng, validation=[row for row in plain.validation if row.label == 1])
    start.touch()
    train[2] = one_label
    found, errors = outcome("third")
    assert found["readout"] is None and not start.exists()
    assert errors.endswith("got [1]; the run begins without a readout\n") and errors.count("\n") == 1
