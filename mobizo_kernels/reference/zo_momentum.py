"""zo_momentum in numpy, to the bit."""

from __future__ import annotations

import numpy as np
import torch

from mobizo_kernels.reference.perturb import perturb
from mobizo_kernels.reference.zo_update import decayed, stored


def zo_momentum(
    param: torch.Tensor,
    momentum: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    beta: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The updated parameter and momentum as new tensors, and the L2 norm (float64) of the parameter's change.

    Arguments are those of :func:`mobizo_kernels.ops.zo_momentum`.
    """
    new_momentum = perturb(momentum, seeds, coeffs, stream, beta, distribution)
    with np.errstate(invalid="ignore", over="ignore"):
        updated, norm = stored(param, decayed(param, decay) + new_momentum.numpy())
    return updated, new_momentum, norm
