"""What most tests of the native trainer begin with; a file that needs another program defines its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import inside_of, make_task, task_in
from helpers import directions
from programs import made_once, tiny_dataset, tiny_program
from readout_tasks import PLAIN, Task

from mobizo_kernels.executorch import Trainer


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny training program."""
    return tiny_program(tmp_path_factory)


@pytest.fixture
def dataset(tmp_path: Path, rng: torch.Generator) -> Path:
    """Rows for it."""
    return tiny_dataset(tmp_path / "data.safetensors", rng)


@pytest.fixture
def trainer(program: Path, rng: torch.Generator) -> Trainer:
    """The program in memory, with an adapter that is not zero."""
    trainer = Trainer(program)
    seeds, coeffs = directions(2, rng)
    trainer.update(seeds.numpy(), coeffs.numpy())
    return trainer


@pytest.fixture
def plain(program: Path, tmp_path: Path, rng: torch.Generator) -> Task:
    """Rows of which a readout of it learns something."""
    return Task(program, PLAIN, tmp_path, rng)


@pytest.fixture(scope="session")
def cli_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the next three lie, which tests only read."""
    return made_once(tmp_path_factory, "cli-runs", make_task)


@pytest.fixture
def task(cli_runs: Path) -> dict[str, Any]:
    """Settings of `mobizo train` in torch."""
    return task_in(cli_runs)


@pytest.fixture
def inside(cli_runs: Path) -> dict[str, Any]:
    """The same inside ExecuTorch."""
    return inside_of(cli_runs)


@pytest.fixture
def finished(cli_runs: Path) -> Path:
    """The directory of a run of these, with its journal."""
    return cli_runs / "finished"
