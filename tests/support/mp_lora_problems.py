"""Random arguments of mp_lora on any device, and how close a result has to be to the float64 reference."""

from __future__ import annotations

from typing import NamedTuple

import torch
from helpers import assert_close_to_mp_lora, directions, gamma

from mobizo_kernels import reference
from mobizo_kernels.reference.mp_lora import perturbations


class Problem(NamedTuple):
    """Arguments of mp_lora, by name."""

    base: torch.Tensor
    x: torch.Tensor
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    seeds: torch.Tensor
    coeffs: torch.Tensor
    scaling: float
    stream: int
    distribution: str


def problem(
    sizes: tuple[int, int, int, int, int],
    device: str,
    mix: tuple[torch.dtype, torch.dtype, torch.dtype] = (torch.float32,) * 3,
    distribution: str = "gaussian",
) -> Problem:
    rows, in_features, out_features, rank, groups = sizes
    storage, a_storage, b_storage = mix
    rng = torch.Generator().manual_seed(sum(sizes))
    tensors = (
        torch.randn(rows, out_features, generator=rng).to(storage),
        torch.randn(rows, in_features, generator=rng).to(storage),
        torch.randn(rank, in_features, generator=rng).div(max(in_features, 1) ** 0.5).to(a_storage),
        torch.randn(out_features, rank, generator=rng).to(b_storage),
        *directions(groups, rng),
    )
    return Problem(*(tensor.to(device) for tensor in tensors), 1.75, -1234567890123456789, distribution)


def assert_close(actual: torch.Tensor, p: Problem, base_error: float | torch.Tensor = 0.0) -> None:
    """Within twice the bound of float32 sums: matrix units truncate their sums where others round."""
    p = p._replace(
        **{name: value.cpu() for name, value in p._asdict().items() if isinstance(value, torch.Tensor)}
    )
    noise = perturbations(p.lora_b, p.seeds, p.coeffs, p.stream, p.distribution)
    stack = p.lora_b.double().abs() + noise.abs()
    absolute = (tensor.double().abs() for tensor in (p.base, p.x, p.lora_a))
    magnitude = reference.mp_lora_stacked(*absolute, stack, abs(p.scaling))
    rank, in_features = p.lora_a.shape
    error = base_error + gamma(in_features + rank + 5) * magnitude
    assert_close_to_mp_lora(actual.cpu(), *p, base_error=error)
