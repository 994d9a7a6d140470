"""Random arguments of mp_outer_ on any device, and how close a result has to be to the float64 reference."""

from __future__ import annotations

from typing import NamedTuple

import torch
from helpers import directions, gamma, storage_error

from mobizo_kernels import reference


class OuterProblem(NamedTuple):
    """Arguments of mp_outer_, by name."""

    base: torch.Tensor
    x: torch.Tensor
    seeds: torch.Tensor
    coeffs: torch.Tensor
    stream: int
    transposed: bool = False


def outer_problem(
    sizes: tuple[int, int, int, int],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    transposed: bool = False,
    draw: int = 0,
) -> OuterProblem:
    """`sizes` are rows, in, out, groups."""
    rows, width, height, groups = sizes
    rng = torch.Generator().manual_seed(draw)
    base = torch.randn(rows, height, generator=rng).to(dtype)
    x = torch.randn(rows, width, generator=rng).to(dtype)
    tensors = [tensor.to(device) for tensor in (base, x, *directions(groups, rng))]
    return OuterProblem(*tensors, -1234567890123456789, transposed)


def assert_close_to_mp_outer(actual: torch.Tensor, p: OuterProblem) -> None:
    """Within the error of float32 sums in any order: `in` roundings of the dot product and three more
    (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), then one into storage.
    """
    p = OuterProblem(*(one.cpu() if isinstance(one, torch.Tensor) else one for one in p))
    expected = reference.mp_outer(*p)
    width, groups = p.x.shape[-1], len(p.seeds)
    coeffs = p.coeffs.double().abs().repeat_interleave(p.x.shape[:-1].numel() // groups)
    sums = p.x.double().abs().sum(dim=-1) * coeffs.view(p.x.shape[:-1])
    magnitude = p.base.double().abs() + sums[..., None]
    error = gamma(width + 3) * magnitude
    error = error + storage_error(expected.abs() + error, p.base.dtype)
    assert actual.dtype == p.base.dtype
    assert actual.shape == p.base.shape
    excess = (actual.cpu().double() - expected).abs() - error
    assert not actual.isnan().any()
    assert bool((excess <= 0).all()), f"beyond the bound by {float(excess.max()):.3g}"


def moved(p: OuterProblem) -> torch.Tensor:
    """A copy of the base, changed."""
    base = p.base.clone()
    torch.ops.mobizo.mp_outer_(base, *p[1:])
    return base
