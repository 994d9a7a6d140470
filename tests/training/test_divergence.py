"""When a loss is said to run away, and when not."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch

from mobizo_kernels.training.divergence import WINDOW, DivergenceGuard


def unsteady_at(losses: Iterable[float]) -> int | None:
    """The first step at which a run of these losses is unsteady."""
    guard = DivergenceGuard()
    for step, loss in enumerate(losses):
        if guard.observe(loss, math.isfinite(loss)):
            return step
    return None


def noisy(means: torch.Tensor, rng: torch.Generator, deviation: float = 0.25) -> list[float]:
    return (means + deviation * torch.randn(len(means), generator=rng)).clamp(min=0).tolist()


def test_noise_and_slow_changes_are_steady(rng: torch.Generator) -> None:
    for means in (torch.full((3000,), 0.7), torch.linspace(0.7, 0.3, 3000), torch.linspace(0.6, 0.9, 3000)):
        assert unsteady_at(noisy(means, rng)) is None


def test_a_loss_that_runs_away_is_found(rng: torch.Generator) -> None:
    for top in (2.0, 5.0, 100.0):
        rise = torch.cat([torch.linspace(0.7, 0.4, 100), torch.linspace(0.4, top, 100)])
        assert 100 < unsteady_at(noisy(rise, rng)) < 200


def test_one_loss_far_off_is_no_matter(rng: torch.Generator) -> None:
    losses = noisy(torch.full((400,), 0.7), rng)
    losses[200] = 10.0
    assert unsteady_at(losses) is None


def test_a_smooth_curve_near_zero_is_steady() -> None:
    falling = [2 * 0.97**step for step in range(300)]
    assert unsteady_at([*falling, *(1.05 * loss for loss in reversed(falling[-30:]))]) is None
    assert unsteady_at([0.5] * 100) is None
    assert unsteady_at([0.5] * WINDOW + [0.5 + 1e-6 * step for step in range(100)]) is None


def test_validations() -> None:
    guard = DivergenceGuard()
    assert [guard.validate(loss) for loss in (0.6, 0.5, 0.89, 0.91, 0.6, math.nan)] == [
        False, False, False, True, False, True,
    ]  # fmt: skip


def test_small_validation_losses_have_room() -> None:
    guard = DivergenceGuard()
    assert [guard.validate(loss) for loss in (0.01, 0.016, 0.1, 0.12)] == [False, False, False, True]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_steps_without_a_loss(value: float) -> None:
    steady = [0.5, 0.6] * 30
    assert unsteady_at([*steady, *[value] * (WINDOW - 1), 0.5, *[value] * (WINDOW - 1)]) is None
    assert unsteady_at([*steady, *[value] * WINDOW]) == 60 + WINDOW - 1
    assert unsteady_at([value] * WINDOW) == WINDOW - 1
