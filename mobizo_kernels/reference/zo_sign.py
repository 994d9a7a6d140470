"""zo_sign in numpy, to the bit."""

from __future__ import annotations

import numpy as np
import torch

from mobizo_kernels.reference.zo_update import decayed, gradient, stored


def zo_sign(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> tuple[torch.Tensor, float]:
    """The updated parameter as a new tensor, and the L2 norm (float64) of the change of the stored values.

    Arguments are those of :func:`mobizo_kernels.ops.zo_sign`.
    """
    g = gradient(tuple(param.shape), seeds, coeffs, stream, distribution)
    with np.errstate(invalid="ignore", over="ignore"):
        return stored(param, decayed(param, decay) - np.float32(lr.item()) * np.sign(g))
