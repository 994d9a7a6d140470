"""zo_adam in numpy, to the bit."""

from __future__ import annotations

import numpy as np
import torch

from mobizo_kernels.reference.noise import fma
from mobizo_kernels.reference.zo_update import decayed, gradient, stored


def zo_adam(
    param: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    stream: int,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """The updated parameter and averages as new tensors, and the L2 norm (float64) of the parameter's change.

    Arguments are those of :func:`mobizo_kernels.ops.zo_adam`.
    """
    g = gradient(tuple(param.shape), seeds, coeffs, stream, distribution)
    with np.errstate(all="ignore"):
        m = fma(beta1, exp_avg.numpy(), np.float32(1.0 - beta1) * g)
        v = fma(beta2, exp_avg_sq.numpy(), np.float32(1.0 - beta2) * g * g)
        step = m / (np.sqrt(v) + np.float32(eps))
        updated, norm = stored(param, fma(-lr.item(), step, decayed(param, decay)))
    return updated, torch.from_numpy(m), torch.from_numpy(v), norm
