"""perturb_ and foreach_perturb_ in numpy, to the bit: decay * param + sum_i coeffs[i] * z(seeds[i])."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mobizo_kernels.reference.noise import fma, noise


def perturb(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """The perturbed parameter, as a new contiguous tensor.

    The sum runs in float32, one fused multiply-add per seed in the order given; the total is rounded to
    nearest even into the parameter's dtype.

    Args:
        param: float32, bfloat16 or float16, any shape. Element e in row-major order takes noise element e.
        seeds: int64 [n].
        coeffs: float32 [n].
        stream: names the parameter.
        decay: factor on the old value, used as a float32.
        distribution: "gaussian", "rademacher" or "outer".

    Returns:
        Tensor of the shape and dtype of `param`.
    """
    value = param.detach().cpu().float().contiguous().numpy()
    if decay != 1.0:
        value = np.float32(decay) * value
    for seed, coeff in zip(seeds.tolist(), coeffs.tolist(), strict=True):
        value = fma(coeff, noise(tuple(param.shape), seed, stream, distribution), value)
    return torch.from_numpy(np.array(value, np.float32)).to(param.dtype)


def foreach_perturb(
    params: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    streams: Sequence[int],
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> list[torch.Tensor]:
    """`perturb` of every parameter, each under its own stream: new tensors in the order of `params`."""
    return [
        perturb(param, seeds, coeffs, stream, decay, distribution)
        for param, stream in zip(params, streams, strict=True)
    ]
