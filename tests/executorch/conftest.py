"""What most tests of the native trainer begin with; a file that needs another program defines its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import directions
from programs import tiny_dataset, tiny_program

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
