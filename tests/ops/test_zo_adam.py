"""zo_adam with any numbers against the numpy twin, to the bit, and against AdamW of torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_same_bits, directions
from update_ops import ADAM, LR

from mobizo_kernels import ops, reference

NUMBERS = tuple(ADAM.numbers.values())


def test_extreme_values() -> None:
    extremes = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-45, 1e-30, 1.0])
    param, exp_avg, exp_avg_sq = (
        values.reshape(-1).clone() for values in torch.meshgrid(extremes, extremes, extremes, indexing="ij")
    )
    for coefficient in (0.0, 1e-44, 1e-20, 1e25):
        args = (torch.tensor([1]), torch.tensor([coefficient]), LR, 9, *NUMBERS)
        *expected, _ = reference.zo_adam(param, exp_avg, exp_avg_sq, *args)
        got = (param.clone(), exp_avg.clone(), exp_avg_sq.clone())
        ops.zo_adam(*got, *args)
        for tensor, updated in zip(got, expected, strict=True):
            assert_same_bits(tensor, updated)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_is_adamw_of_torch(weight_decay: float, rng: torch.Generator) -> None:
    """Five steps against torch.optim.AdamW in float64, fed with the materialised gradient."""
    param = torch.randn(300, generator=rng)
    exp_avg, exp_avg_sq = torch.zeros(300), torch.zeros(300)
    peer = param.double().requires_grad_()
    # eps = 0: torch adds it to the corrected average, the efficient form to the plain one.
    adamw = torch.optim.AdamW([peer], lr=0.02, betas=(0.8, 0.95), eps=0, weight_decay=weight_decay)
    for step in range(1, 6):
        seeds, slopes = directions(4, rng, scale=1.0)
        z = torch.stack([torch.from_numpy(reference.noise(300, int(seed), 8)) for seed in seeds])
        peer.grad = (slopes.double()[:, None] * z.double()).mean(0)
        adamw.step()
        lr = torch.tensor([0.02 * math.sqrt(1 - 0.95**step) / (1 - 0.8**step)])
        decay = 1 - 0.02 * weight_decay
        ops.zo_adam(param, exp_avg, exp_avg_sq, seeds, slopes / 4, lr, 8, 0.8, 0.95, 0.0, decay)
    torch.testing.assert_close(param.double(), peer.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [("param", "exp_avg"), ("param", "exp_avg_sq"), ("exp_avg", "exp_avg_sq")])
def test_refuses_tensors_that_share_memory(shared: tuple[str, str]) -> None:
    call: dict[str, Any] = {**{name: torch.ones(3) for name in ADAM.names}, **ADAM.accepted(), "stream": 0}
    call[shared[1]] = call[shared[0]]
    with pytest.raises(RuntimeError, match=f"{shared[0]} and {shared[1]} must not share memory"):
        ops.zo_adam(**call)
    assert all(bool((call[name] == 1).all()) for name in ADAM.names)
