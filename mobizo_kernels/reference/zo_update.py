"""zo_update in numpy, to the bit, and what the optimizers with state share with it."""

from __future__ import annotations

import numpy as np
import torch

from mobizo_kernels.reference.noise import Float32
from mobizo_kernels.reference.perturb import perturb


def zo_update(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> tuple[torch.Tensor, float]:
    """The updated parameter as a new tensor, and the L2 norm (float64) of the change of the stored values.

    Arguments are those of :func:`mobizo_kernels.reference.perturb.perturb`.
    """
    updated = perturb(param, seeds, coeffs, stream, decay, distribution)
    return updated, _norm_of_change(param, updated)


def gradient(
    shape: tuple[int, ...], seeds: torch.Tensor, coeffs: torch.Tensor, stream: int, distribution: str
) -> Float32:
    """sum_i coeffs[i] * z(seeds[i]) as float32, one fused multiply-add per seed from 0 on."""
    zeros = torch.zeros(shape, dtype=torch.float32, device="cpu")
    return perturb(zeros, seeds, coeffs, stream, 1.0, distribution).numpy()


def decayed(param: torch.Tensor, decay: float) -> Float32:
    """decay * param as float32."""
    return np.float32(decay) * param.detach().cpu().float().contiguous().numpy()


def stored(param: torch.Tensor, value: Float32) -> tuple[torch.Tensor, float]:
    """`value` rounded to nearest even into the dtype of `param`, and the L2 norm of what that changes."""
    updated = torch.from_numpy(np.array(value, np.float32)).to(param.dtype)
    return updated, _norm_of_change(param, updated)


def _norm_of_change(param: torch.Tensor, updated: torch.Tensor) -> float:
    change = updated.double() - param.detach().cpu().double()
    return float(change.square().sum().sqrt())
