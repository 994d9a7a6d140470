"""Bad input to the native trainer: an error that names what is wrong, and everything as it was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import directions
from op_programs import MethodSpec, lower
from programs import (
    Batch,
    Unchanged,
    no_update,
    program_batch,
    tiny_dataset,
    tiny_program,
    tiny_rows,
)

from mobizo_kernels.executorch import Trainer, read_description

STEPS: dict[str, Any] = {"steps": 4, "eval_every": 0, "keep": "last"}


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_program(tmp_path_factory)


@pytest.fixture
def trainer(program: Path, rng: torch.Generator) -> Trainer:
    """With an adapter that is not zero."""
    trainer = Trainer(program)
    seeds, coeffs = directions(2, rng)
    trainer.update(seeds.numpy(), coeffs.numpy())
    return trainer


@pytest.fixture
def dataset(tmp_path: Path, rng: torch.Generator) -> Path:
    return tiny_dataset(tmp_path / "data.safetensors", rng)


ARGUMENTS = (
    "input_ids", "attention_mask", "target_positions", "target_ids", "seeds", "coeffs", "update_seeds",
    "update_coeffs",
)  # fmt: skip


def step_arguments(trainer: Trainer, rng: torch.Generator) -> dict[str, np.ndarray]:
    d = trainer.description
    batch: Batch = program_batch(tiny_rows(rng, (9, 4, 12)), d)
    seeds, coeffs = directions(d["groups"], rng)
    values = (*batch, seeds.numpy(), coeffs.numpy(), *no_update(d))
    return dict(zip(ARGUMENTS, values, strict=True))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_a_step(name: str, trainer: Trainer, rng: torch.Generator) -> None:
    arguments = step_arguments(trainer, rng)
    value = arguments[name]
    other = np.int32 if value.dtype == np.int64 else np.float64
    for wrong in (value.astype(other), value[:-1], value[None], np.repeat(value, 2, axis=0)):
        with Unchanged(trainer), pytest.raises(ValueError, match=name):
            trainer.train_step(**{**arguments, name: wrong})
    with Unchanged(trainer):
        trainer.train_step(**arguments)


@pytest.mark.parametrize("length", [0, 1, 2, 25, 1000])
def test_length_beyond_the_bounds(length: int, trainer: Trainer, rng: torch.Generator) -> None:
    arguments = step_arguments(trainer, rng)
    arguments |= {name: np.ones((3, length), np.int64) for name in ("input_ids", "attention_mask")}
    message = f"input_ids must have from 3 to 24 columns, got {length}"
    with Unchanged(trainer), pytest.raises(ValueError, match=message):
        trainer.train_step(**arguments)


@pytest.mark.parametrize("token", [-1, 61, 2**40])
def test_token_outside_the_vocabulary(token: int, trainer: Trainer, rng: torch.Generator) -> None:
    arguments = step_arguments(trainer, rng)
    arguments["input_ids"][1, -1] = token
    with Unchanged(trainer), pytest.raises(ValueError):
        trainer.train_step(**arguments)


@pytest.mark.parametrize("position", [-1, 11, 2**33])
def test_position_outside_the_row(position: int, trainer: Trainer, rng: torch.Generator) -> None:
    arguments = step_arguments(trainer, rng)
    arguments["target_positions"][1, 0] = position
    with Unchanged(trainer), pytest.raises(ValueError):
        trainer.train_step(**arguments)


def test_program_cut_short(program: Path, tmp_path: Path) -> None:
    """Anywhere: an error that names the file, and no crash. Only what follows the last segment is padding."""
    whole, cut = program.read_bytes(), tmp_path / "cut.pte"
    for tenth in range(10):
        cut.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(ValueError, match="cut.pte"):
            Trainer(cut)
        with pytest.raises(ValueError, match="cut.pte"):
            read_description(cut)


def test_files_that_are_no_programs(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(ValueError, match="data.safetensors.*not a program"):
        Trainer(dataset)
    with pytest.raises(OSError, match="no_such.pte"):
        Trainer(tmp_path / "no_such.pte")
    with pytest.raises((ValueError, OSError), match=tmp_path.name):
        Trainer(tmp_path)


def test_a_program_without_a_description(tmp_path: Path) -> None:
    path = tmp_path / "other.pte"
    path.write_bytes(lower({"forward": MethodSpec(lambda _, x: x + 1, (torch.ones(2),))}))
    with pytest.raises(ValueError, match="not a training program"):
        Trainer(path)


@pytest.mark.parametrize("threads", [-1, 10**6])
def test_number_of_threads(threads: int, program: Path) -> None:
    with pytest.raises(ValueError, match=f"threads must be .*{threads}"):
        Trainer(program, threads=threads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"eps": float("nan")}, "eps must be positive"),
        ({"lr": -1.0}, "lr must be finite and at least 0"),
        ({"lr": float("inf")}, "lr must be finite"),
        ({"lr_schedule": "step"}, "lr_schedule must be .*'step'"),
        ({"keep": "first"}, "keep must be best or last, got 'first'"),
        ({"keep": "best"}, "keep must be last if eval_every is 0"),
        ({"eval_every": -1}, "eval_every must be at least 0"),
        ({"sync_every": 0}, "sync_every must be at least 1"),
        ({"validation_rows": 0}, "validation_rows must be at least 1"),
        ({"resume": True}, "resume needs a journal"),
    ],
    ids=str,
)
def test_options_of_a_run(options: dict[str, Any], message: str, trainer: Trainer, dataset: Path) -> None:
    with Unchanged(trainer), pytest.raises(ValueError, match=message):
        trainer.train(dataset, **{**STEPS, **options})


@pytest.mark.parametrize(
    ("there", "instead", "message"),
    [
        (b'"format": 1', b'"format": 2', "expected a program of format 1, got 2"),
        (b'"groups": 4', b'"groups": 5', "groups must be 4 for 2 queries"),
        (b'"estimator": "two', b'"estimates": "two', "estimator"),
        (b'"batch_size": 3', b'"batch_size": 0', "batch_size: expected at least 1, got 0"),
        (b'"pad_token": 0', b'"pad_token": x', "not JSON at byte .*: expected a value"),
    ],
    ids=str,
)
def test_description_of_another_format(
    there: bytes, instead: bytes, message: str, program: Path, tmp_path: Path
) -> None:
    path, binary = tmp_path / "model.pte", program.read_bytes()
    assert binary.count(there) == 1
    path.write_bytes(binary.replace(there, instead))
    with pytest.raises(ValueError, match=f"model.pte: description.*{message}"):
        Trainer(path)


def test_a_batch_that_the_methods_do_not_take(program: Path, tmp_path: Path, rng: torch.Generator) -> None:
    """A description that promises other shapes than the methods have: ExecuTorch's own checks catch it."""
    path = tmp_path / "model.pte"
    path.write_bytes(program.read_bytes().replace(b'"batch_size": 3', b'"batch_size": 2'))
    trainer = Trainer(path)
    arguments = {name: value[:2] if len(value) == 3 else value for name, value in step_arguments(
        Trainer(program), rng).items()}  # fmt: skip
    with Unchanged(trainer), pytest.raises(ValueError, match="model.pte: method train_step: "):
        trainer.train_step(**arguments)
