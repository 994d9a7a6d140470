"""zo_update on a GPU: perturb_'s kernel, and the norm of the change by sums in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mobizo_kernels.triton.perturb import update_block
from mobizo_kernels.triton.update import step_with_norm, store_square


@triton.jit(do_not_specialize=["numel", "count", "stream"])
def zo_update_kernel(
    param,
    numel,
    squares,
    seeds,
    coeffs,
    count,
    stream,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """perturb_kernel that leaves the sum of its block's squared changes in squares[program], float64."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    change = update_block(
        param, first, numel, seeds, coeffs, count, stream, decay, BLOCK, VECTOR, DISTRIBUTION
    )
    store_square(squares, change)


def zo_update_out(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """:func:`zo_update` with the norm in `out`, float32 [1]."""
    written = {"param": param}
    return step_with_norm(
        "zo_update", zo_update_kernel, written, seeds, coeffs, stream, (decay,), distribution, out
    )


def zo_update(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.zo_update` on a GPU."""
    norm = param.new_empty(1, dtype=torch.float32)
    return zo_update_out(param, seeds, coeffs, stream, decay, distribution, out=norm)
