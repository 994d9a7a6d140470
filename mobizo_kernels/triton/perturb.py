"""perturb_ and foreach_perturb_ on a GPU: one pass over the parameters, one launch for all of a dtype."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mobizo_kernels.triton.launch import begin, launch, update_each
from mobizo_kernels.triton.update import add_directions


@triton.jit
def perturb_step(directions, at, param: tl.tensor, decay):
    return add_directions(param * decay, *directions)


def perturb_(
    param: Tensor, seeds: Tensor, coeffs: Tensor, stream: int, decay: float = 1.0,
    distribution: str = "gaussian",
) -> Tensor:  # fmt: skip
    """:func:`mobizo_kernels.ops.perturb_` on a GPU."""
    begin("perturb_", {"self": [param]}, seeds, coeffs, (decay,), distribution)
    launch(perturb_step, [param], seeds, coeffs, stream, (decay,), distribution, squares=None)
    return param


def foreach_perturb_(
    params: Sequence[Tensor], seeds: Tensor, coeffs: Tensor, streams: Sequence[int], decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:  # fmt: skip
    """:func:`mobizo_kernels.ops.foreach_perturb_` on a GPU: one launch for all parameters of a dtype.

    A parameter that is not contiguous takes a launch and two copies of its own. The first call with a set of
    parameters copies a table to the device, which must not happen inside the capture of a CUDA graph.
    """
    op, numbers = "foreach_perturb_", (decay,)
    update_each(op, perturb_step, {"self": params}, seeds, coeffs, streams, numbers, distribution)
