"""A look at the losses of the next step, and records of others: the step in two halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import assert_same_bits
from journals import adapters, assert_same_adapters, wrapped
from torch import nn

import mobizo_kernels as mobizo
from mobizo_kernels.journal import JournalLost, read_journal
from mobizo_kernels.optim import Records


def test_losses_are_those_of_the_step_and_change_nothing(rng: torch.Generator) -> None:
    batches = [tiny.batch(rng), tiny.batch(rng, (4, 6), labelled=3)]
    zo = mobizo.ZerothOrder(wrapped(), queries=3, lr=0.1)
    for batch, weight in ((batches[0], 6), (batches, 12)):
        before = adapters(zo.model)
        seen = zo.losses(batch)
        assert_same_adapters(zo.model, before)
        assert seen.weight == weight
        assert_same_bits(seen.losses, zo.step(batch).losses)
    assert zo.steps == 2


def test_the_weight_with_an_objective_is_rows(rng: torch.Generator) -> None:
    def objective(model: nn.Module, batch: Any, groups: int) -> torch.Tensor:
        return torch.arange(groups, dtype=torch.float32)

    seen = mobizo.ZerothOrder(wrapped(), queries=2).losses(tiny.batch(rng), objective=objective)
    assert seen.losses.tolist() == [0, 1, 2, 3] and seen.weight == 3


def test_records_of_others_are_recorded_before_they_are_applied(tmp_path: Path, rng: torch.Generator) -> None:
    with_journal: dict[str, Any] = {"queries": 2, "optimizer": "adam", "lr": 0.01}
    zo = mobizo.ZerothOrder(wrapped(), **with_journal, journal=tmp_path / "first")
    for _ in range(4):
        zo.step(tiny.batch(rng))
    _, records = read_journal(tmp_path / "first")
    other = mobizo.ZerothOrder(wrapped(), **with_journal, journal=tmp_path / "second")
    other.apply(records[:3])
    other.apply(records[3:])
    assert_same_adapters(other.model, adapters(zo.model))
    assert (tmp_path / "second").read_bytes() == (tmp_path / "first").read_bytes()
    (tmp_path / "second").unlink()
    with pytest.raises(JournalLost):
        other.apply(records[3:])
    assert other.steps == 4
    assert_same_adapters(other.model, adapters(zo.model))


def test_what_has_no_losses_to_look_at(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="losses needs a model wrapped by"):
        mobizo.ZerothOrder(tiny.llama()).losses(tiny.batch(rng))
    zo = mobizo.ZerothOrder(wrapped(), queries=2)
    with pytest.raises(ValueError, match=r"records must have 2 coefficients, got \[3\]"):
        zo.apply(Records.none(3))
