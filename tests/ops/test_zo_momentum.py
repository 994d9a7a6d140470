"""zo_momentum with any numbers against the numpy twin, to the bit, and against SGD of torch."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES, directions, name_of

from mobizo_kernels import ops, reference


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_is_sgd_with_momentum_of_torch(dtype: torch.dtype, rng: torch.Generator) -> None:
    """Three steps against torch.optim.SGD in float64, fed with the materialised gradient."""
    start = torch.randn(300, generator=rng).to(dtype)
    param, momentum = start.clone(), torch.zeros(300)
    peer = start.double().requires_grad_()
    sgd = torch.optim.SGD([peer], lr=0.05, momentum=0.9)
    for _ in range(3):
        seeds, slopes = directions(4, rng, scale=1.0)
        z = torch.stack([torch.from_numpy(reference.noise(300, int(seed), 8)) for seed in seeds])
        peer.grad = (slopes.double()[:, None] * z.double()).mean(0)
        sgd.step()
        ops.zo_momentum(param, momentum, seeds, -0.05 / 4 * slopes, 8, 0.9)
    torch.testing.assert_close(
        param.double(), peer.detach(), rtol=0, atol=8 * torch.finfo(dtype).eps * float(start.abs().max())
    )


def test_refuses_tensors_that_share_memory() -> None:
    param, row, one = torch.ones(3), torch.ones(3), (torch.tensor([1]), torch.ones(1))
    with pytest.raises(RuntimeError, match="param and momentum must not share memory"):
        ops.zo_momentum(param, param, *one, 0, 0.9)
    with pytest.raises(RuntimeError, match="momentum must not overlap itself"):
        ops.zo_momentum(torch.ones(4, 3), row.expand(4, 3), *one, 0, 0.9)
    with pytest.raises(RuntimeError, match=r"momenta\[0\] and momenta\[1\] must not share memory"):
        ops.foreach_zo_momentum_([param, torch.ones(3)], [row, row], *one, [0, 1], 0.9)
    assert bool((param == 1).all())
    assert bool((row == 1).all())
