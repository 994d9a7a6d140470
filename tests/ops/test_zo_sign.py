"""zo_sign with any numbers against the numpy twin, to the bit, and what the sign of a sum is."""

from __future__ import annotations

import pytest
import torch
from helpers import DISTRIBUTIONS, assert_norm, assert_same_bits, directions
from update_ops import LR

from mobizo_kernels import ops, reference


def test_the_sign_of_nothing_is_zero() -> None:
    """Opposite coefficients of one seed cancel to the bit: nothing moves, zeros keep their sign."""
    param = torch.tensor([1.0, -1.0, 0.0, -0.0, 1e-45]).repeat(9)
    before = param.clone()
    norm = ops.zo_sign(param, torch.tensor([5, 5]), torch.tensor([0.25, -0.25]), LR, 0)
    assert_same_bits(param, before)
    assert norm.item() == 0


@pytest.mark.parametrize("coefficient", [0.0, -0.0, 1e-45, torch.inf, torch.nan])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_extreme_values(coefficient: float, distribution: str) -> None:
    extremes = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, 1e-45]
    for lr in (LR, torch.tensor([torch.inf]), torch.zeros(1), -LR):
        param = torch.tensor(extremes).repeat(40)
        args = (torch.tensor([1]), torch.tensor([coefficient]), lr, 9, 1.0, distribution)
        expected, _ = reference.zo_sign(param, *args)
        ops.zo_sign(param, *args)
        assert_same_bits(param, expected)


def test_every_value_moves_by_lr_against_the_gradient(rng: torch.Generator) -> None:
    seeds, slopes = directions(4, rng)
    z = torch.stack([torch.from_numpy(reference.noise(300, int(seed), 8)) for seed in seeds]).double()
    param = torch.zeros(300)
    norm = ops.zo_sign(param, seeds, slopes, LR, 8)
    assert torch.equal(param, -LR * (slopes.double() @ z).sign().float())
    assert_norm(norm, LR.double().item() * 300**0.5)


def test_refuses_tensors_that_share_memory() -> None:
    param, row, one = torch.ones(3), torch.ones(3), (torch.tensor([1]), torch.ones(1), LR)
    with pytest.raises(RuntimeError, match="param must not overlap itself"):
        ops.zo_sign(row.expand(4, 3), *one, 0)
    with pytest.raises(RuntimeError, match=r"params\[0\] and params\[1\] must not share memory"):
        ops.foreach_zo_sign_([param, param], *one, [0, 1])
    assert bool((param == 1).all())
    assert bool((row == 1).all())
