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
    tiny_rows,
    with_checksum,
)

from mobizo_kernels.executorch import Trainer

STEPS: dict[str, Any] = {"steps": 4, "eval_every": 0, "keep": "last"}


ARGUMENTS = (
    "input_ids", "attention_mask", "target_positions", "target_ids", "seeds", "coeffs", "update_seeds",
    "update_coeffs",
)  # fmt: skip


def step_arguments(trainer: Trainer, rng: torch.Generator) -> dict[str, np.ndarray]:
    d = trainer.description
    batch: Batch = program_batch(tiny_rows(rng, (9, 4, 12)), d)
    seeds, coeffs = directions(d.groups, rng)
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


def test_a_program_without_a_description(tmp_path: Path) -> None:
    path = tmp_path / "other.pte"
    path.write_bytes(with_checksum(lower({"forward": MethodSpec(lambda _, x: x + 1, (torch.ones(2),))})))
    with pytest.raises(ValueError, match="not a training program: it has no method mobizo_description"):
        Trainer(path)


@pytest.mark.parametrize("threads", [-1, 10**6])
def test_number_of_threads(threads: int, program: Path) -> None:
    with pytest.raises(ValueError, match=f"threads must be .*{threads}"):
        Trainer(program, threads=threads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be from 1 to 2147483647, got 0"),
        ({"steps": 2**63 - 1}, "steps must be from 1 to 2147483647, got 9223372036854775807"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"eps": 1e-50}, "eps must be positive and finite in float32"),
        ({"eps": 1e39}, "eps must be positive and finite in float32"),
        ({"eps": float("nan")}, "eps must be positive"),
        ({"lr": -1.0}, "lr must be at least 0 and finite in float32"),
        ({"lr": float("inf")}, "lr must be at least 0 and finite in float32"),
        ({"lr": 1e39}, "lr must be at least 0 and finite in float32"),
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
