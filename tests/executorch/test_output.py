"""What mobizo_runner prints, where nobody takes it: said by the exit code, and a run goes on to its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from crash import start_runner
from programs import tiny_dataset, tiny_program


@pytest.fixture
def train(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, rng: torch.Generator) -> list[str | Path]:
    """Arguments of a short run."""
    dataset = tiny_dataset(tmp_path / "data.safetensors", rng)
    return ["train", tiny_program(tmp_path_factory), dataset, "--steps", "3", "--print-every", "1"]


def outcome(arguments: list[str | Path], stdout: int) -> tuple[int, str]:
    process = start_runner(arguments, stdout)
    os.close(stdout)
    _, errors = process.communicate()
    return process.returncode, errors


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def nobody() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(("stdout", "why"), [(full_disk, "No space left on device"), (nobody, "Broken pipe")])
def test_output_that_cannot_be_written(
    stdout: Any, why: str, train: list[str | Path], tmp_path: Path
) -> None:
    told = (1, f"mobizo_runner: cannot write the output: {why}\n")
    for arguments in (
        ["--help"],
        ["train", "--help"],
        ["info", train[2]],
        ["evaluate", *train[1:3], "--json"],
    ):
        assert outcome(arguments, stdout()) == told
    for number, more in enumerate(([], ["--quiet", "--json"])):
        adapter = tmp_path / f"{number}.safetensors"
        assert outcome([*train, *more, "--adapter-out", adapter], stdout()) == told
        assert adapter.is_file()
    assert outcome([*train, "--quiet", "--adapter-out", tmp_path / "quiet.safetensors"], stdout()) == (0, "")
