"""zo_update on a GPU: perturb_'s step, and the norm of the change by sums in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mobizo_kernels.triton.launch import update
from mobizo_kernels.triton.perturb import perturb_step


@triton.jit
def zo_update_step(directions, at, param: tl.tensor, decay):
    return perturb_step(directions, at, param, decay)


def zo_update(
    param: Tensor, seeds: Tensor, coeffs: Tensor, stream: int, decay: float = 1.0,
    distribution: str = "gaussian", *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """:func:`mobizo_kernels.ops.zo_update` on a GPU."""
    written = {"param": param}
    return update("zo_update", zo_update_step, written, seeds, coeffs, stream, (decay,), distribution, out)
