"""mp_outer in float64, with every direction u v^T written out."""

from __future__ import annotations

import math

import torch

from mobizo_kernels.reference.noise import noise


def mp_outer(
    base: torch.Tensor,
    x: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    transposed: bool = False,
) -> torch.Tensor:
    """base + coeffs[g] x z(seeds[g])^T for the rows of each group g, z of the distribution "outer".

    Args:
        base: [..., out].
        x: [..., in]; its leading sizes multiply to M rows, M divisible by G.
        seeds: int64 [G].
        coeffs: float32 [G].
        stream: names the weight.
        transposed: the weight, and so z, is [in, out], not [out, in].

    Returns:
        float64 tensor of the shape of `base`, not rounded to its dtype.
    """
    width, height, groups = x.shape[-1], base.shape[-1], len(seeds)
    shape = (width, height) if transposed else (height, width)
    z = [torch.from_numpy(noise(shape, seed, stream, "outer")).double() for seed in seeds.tolist()]
    moves = torch.stack([one if transposed else one.T for one in z])
    rows = x.detach().double().reshape(groups, math.prod(x.shape[:-1]) // groups, width)
    added = coeffs.detach().cpu().double()[:, None, None] * torch.bmm(rows, moves)
    return base.detach().double() + added.reshape(base.shape)
