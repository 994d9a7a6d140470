"""zo_update: the norm is of the change of what is stored."""

from __future__ import annotations

import torch
from helpers import directions, poisoned

from mobizo_kernels import ops


def test_norm_is_of_stored_values(rng: torch.Generator) -> None:
    """Steps far below the spacing of bfloat16 change nothing, and the norm says so."""
    param = torch.ones(64, dtype=torch.bfloat16)
    seeds, coeffs = directions(1, rng, scale=1e-6)
    assert ops.zo_update(param, seeds, coeffs, 1).item() == 0
    assert bool((param == 1).all())


def test_no_seeds(rng: torch.Generator) -> None:
    param = torch.randn(9, generator=rng)
    before = param.clone()
    assert ops.zo_update(param, *directions(0, rng), 1).item() == 0
    assert torch.equal(param, before)


def test_a_parameter_of_nan_shows_in_the_norm() -> None:
    assert ops.zo_update(poisoned(3), torch.tensor([1]), torch.ones(1), 0).isnan().all()
