"""zo_update in numpy: the perturbed parameter, to the bit, and the size of the change."""

from __future__ import annotations

import torch

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
    change = updated.double() - param.detach().cpu().double()
    return updated, float(change.square().sum().sqrt())
