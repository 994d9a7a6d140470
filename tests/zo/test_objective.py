"""Steps that minimise something else than the cross-entropy, and shaped losses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig

from mobizo_kernels.journal import replay
from mobizo_kernels.lora import adapter_layers, adapter_of, wrap
from mobizo_kernels.zo import ZerothOrder, tuned_parameters
from mobizo_kernels.zo.objective import shaped

ESTIMATORS = ("two_sided", "one_sided", "centred")


def wrapped() -> Any:
    return wrap(tiny.llama(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"]))


def biases(model: Any) -> torch.Tensor:
    """LoRA-B of all layers in one row."""
    return torch.cat([parameter.detach().flatten() for _, parameter in tuned_parameters(model)])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_as_an_objective_is_the_step_itself(
    estimator: str, normalize: bool, rng: torch.Generator
) -> None:
    options: dict[str, Any] = {"queries": 3, "lr": 0.01, "estimator": estimator, "normalize": normalize}
    ours, theirs = (ZerothOrder(wrapped(), **options) for _ in range(2))
    for _ in range(2):
        batch = tiny.batch(rng)
        found = ours.step(batch, objective=lambda model, batch, groups: ours.loss(batch, groups))
        expected = theirs.step(batch)
        assert_same_bits(found.losses, expected.losses)
    assert_same_bits(biases(ours.model), biases(theirs.model))


def test_an_objective_sees_the_perturbed_groups(rng: torch.Generator) -> None:
    """With the squared distance of a perturbed B from a target, known in closed form, steps go there."""
    model, batch = wrapped(), tiny.batch(rng)
    zo = ZerothOrder(model, queries=4, lr=0.02, eps=0.1)
    seen: list[tuple[Any, int]] = []

    def objective(model: Any, given: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
        directions = adapter_of(model).directions
        seen.append((given, groups))
        assert len(directions.seeds) == groups == 8
        assert directions.coeffs.tolist() == pytest.approx([0.1] * 4 + [-0.1] * 4)
        layer = next(iter(adapter_layers(model).values()))
        x = torch.eye(32).repeat(groups, 1, 1)
        made = (layer(x) - layer.base_layer(x)) / layer.scaling
        wanted = (layer.lora_a.T @ torch.ones(3, 1)).expand(-1, made.shape[-1])
        return (made - wanted).square().sum(dim=(1, 2)).double()

    losses = [zo.step(batch, objective=objective).loss for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    assert seen[0] == (batch, 8)


@pytest.mark.parametrize("shaping", ["none", "standardise", "rank"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_losses_are_a_step_of_zero(
    shaping: Any, normalize: bool, estimator: str, tmp_path: Path
) -> None:
    model = wrapped()
    journal = tmp_path / "run.journal"
    zo = ZerothOrder(model, queries=3, lr=0.1, normalize=normalize, estimator=estimator, journal=journal)
    batch = tiny.batch(torch.Generator().manual_seed(0))
    for value in (0.0, 1 / 3, 1e30):
        output = zo.step(batch, objective=lambda *args, v=value: torch.full((args[2],), v), shaping=shaping)
        assert output.projected_grads.tolist() == [0.0] * 3
        assert not output.skipped
    assert not biases(model).any()


@pytest.mark.parametrize("shaping", ["none", "standardise", "rank"])
def test_losses_that_are_not_finite_are_skipped(shaping: Any) -> None:
    model = wrapped()
    zo = ZerothOrder(model, queries=2)
    for bad in (float("nan"), float("inf")):
        losses = torch.tensor([0.1, 0.2, 0.3, bad])
        output = zo.step(
            tiny.batch(torch.Generator().manual_seed(0)), objective=lambda *_, x=losses: x, shaping=shaping
        )
        assert output.skipped and output.projected_grads.isnan().all()
    assert not biases(model).any()


@pytest.mark.parametrize("shaping", ["none", "standardise", "rank"])
def test_a_journal_replays_to_the_same_bits(shaping: Any, tmp_path: Path, rng: torch.Generator) -> None:
    def objective(model: Any, batch: Any, groups: int) -> torch.Tensor:
        return torch.rand(groups, generator=rng, dtype=torch.float64).round(decimals=1)

    zo = ZerothOrder(wrapped(), queries=3, lr=0.1, journal=tmp_path / "run.journal", normalize=True)
    for _ in range(5):
        zo.step(tiny.batch(rng), objective=objective, shaping=shaping)
    zo.journal.close()  # type: ignore[union-attr]
    again = wrapped()
    assert replay(again, tmp_path / "run.journal") == 5
    assert biases(again).any()
    assert_same_bits(biases(again), biases(zo.model))


def test_other_models_are_perturbed_in_turn(rng: torch.Generator) -> None:
    model = tiny.llama()
    zo = ZerothOrder(model, queries=2, eps=1e-3, lr=1e-4)
    groups_seen = []

    def objective(model: Any, batch: Any, groups: int) -> torch.Tensor:
        groups_seen.append(groups)
        return zo.loss(batch, groups)

    batch = tiny.batch(rng)
    expected = ZerothOrder(tiny.llama(), queries=2, eps=1e-3, lr=1e-4).step(batch)
    assert_same_bits(zo.step(batch, objective=objective).losses, expected.losses)
    assert groups_seen == [1] * 4


def test_shapes(rng: torch.Generator) -> None:
    for count in (1, 2, 5, 16):
        losses = torch.randint(0, 4, (count,), generator=rng).double()
        values = losses.numpy()
        spread = values.std()
        wanted = (values - values.mean()) / spread if spread else np.zeros(count)
        assert shaped(losses, "standardise").numpy() == pytest.approx(wanted)
        ranks = np.array([((values < x).sum() + (values <= x).sum() - 1) / 2 for x in values])
        wanted = ranks / (count - 1) - 0.5 if count > 1 else np.full(1, -0.5)
        assert shaped(losses, "rank").numpy() == pytest.approx(wanted)
        assert shaped(losses, "none").equal(losses)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3), r"a tensor \[4\], one loss for each group, got \[3\]"),
        (torch.zeros(4, 1), r"got \[4, 1\]"),
        ([0.0] * 4, "got list"),
    ],
)
def test_what_an_objective_has_to_give(given: Any, message: str, rng: torch.Generator) -> None:
    model, batch = wrapped(), tiny.batch(rng)
    zo = ZerothOrder(model, queries=2)
    with pytest.raises(ValueError, match=message):
        zo.step(batch, objective=lambda *_: given)
    with pytest.raises(ValueError, match="shaping must be one of none, standardise, rank, got 'cubic'"):
        zo.step(batch, shaping="cubic")  # type: ignore[arg-type]
    assert not biases(model).any() and zo.steps == 0
