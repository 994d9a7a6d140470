"""Which adapter a run keeps, by the losses of its validation rows."""

from __future__ import annotations

import math

import pytest
import torch

from mobizo_kernels.training import Selection


def test_a_lower_loss_is_kept_and_the_first(rng: torch.Generator) -> None:
    selection, losses = Selection(), torch.rand(200, generator=rng)
    for factor in (1.0, 0.9, 0.5):
        assert selection.keep(losses * factor)


@pytest.mark.parametrize(("errors", "kept"), [(1.9, True), (2.1, False)])
def test_two_standard_errors_of_the_difference(errors: float, kept: bool, rng: torch.Generator) -> None:
    """Errors are those of the difference by rows: what all rows have in common does not count."""
    lowest = 100 * torch.rand(50, generator=rng).double()
    excess = torch.randn(50, generator=rng).double()
    excess += errors * excess.std() / math.sqrt(50) - excess.mean()
    selection = Selection()
    assert selection.keep(lowest)
    assert selection.keep(lowest + excess) is kept


def test_many_small_losses_of_quality_add_up(rng: torch.Generator) -> None:
    """Each is compared with the lowest, not with the one before."""
    lowest, selection = torch.rand(100, generator=rng).double(), Selection()
    noise = 0.1 * torch.randn(100, generator=rng).double()
    noise -= noise.mean()
    kept = [selection.keep(lowest + noise + 0.01 * step if step else lowest) for step in range(10)]
    assert kept == [True] * 2 + [True] * kept[2:].count(True) + [False] * kept.count(False)
    assert not kept[-1]


def test_what_is_not_finite_is_never_kept() -> None:
    selection = Selection()
    assert not selection.keep([0.5, math.nan])
    assert not selection.keep([0.5, math.inf])
    assert selection.keep([0.5, 0.6])
    assert not selection.keep([0.1, math.nan])


def test_the_lowest_losses_so_far_are_told() -> None:
    selection, told = Selection(), []
    for loss in (2.0, 1.0, 1.0, math.nan, 0.5):
        selection.keep([loss, 3.0])
        told.append(selection.lowest)
    assert told == [True, True, False, False, True]


def test_one_row_has_no_standard_error() -> None:
    selection = Selection()
    assert [selection.keep([loss]) for loss in (0.5, 0.6, 0.5, 0.4)] == [True, False, True, True]
