"""zo_update on a GPU: perturb_'s kernel, and the norm of the change by sums in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops._checks import check, check_device, dtype_name, shape_of
from mobizo_kernels.triton.perturb import check_update, update_block
from mobizo_kernels.triton.tensors import NOISE_BLOCKS, all_registers, contiguous_update, noise_launch

NORM_BLOCK = 1024


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
    program = tl.program_id(0)
    first = program.to(tl.int64) * BLOCK
    change = update_block(
        param, first, numel, seeds, coeffs, count, stream, decay, BLOCK, VECTOR, DISTRIBUTION
    )
    wide = change.to(tl.float64)
    tl.store(squares + program, tl.sum(wide * wide))


@triton.jit(do_not_specialize=["count"])
def norm_kernel(squares, count, out, BLOCK: tl.constexpr):
    """out[0] = sqrt(sum of squares[0 .. count - 1]), by one program."""
    offset = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        total += tl.load(squares + first + offset, mask=offset < count - first, other=0.0)
    tl.store(out, tl.sqrt(tl.sum(total)).to(tl.float32))


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
    check_update("zo_update", "param", param, seeds, coeffs, distribution)
    check_device("zo_update", "out", out, param.device)
    got = f"{dtype_name(out)} of shape {shape_of(out)}"
    is_norm = out.dtype == torch.float32 and out.shape == (1,)
    check("zo_update", is_norm, f"out must be float32 of shape (1,), got {got}")
    blocks = triton.cdiv(param.numel(), NOISE_BLOCKS[distribution])
    squares = param.new_empty(blocks, dtype=torch.float64)
    if blocks > 0:
        with contiguous_update(param) as values:
            zo_update_kernel[(blocks,)](
                values,
                values.numel(),
                squares,
                seeds.contiguous(),
                coeffs.contiguous(),
                seeds.numel(),
                stream,
                decay,
                **noise_launch(values, distribution),
                **all_registers(),
            )
    norm_kernel[(1,)](squares, blocks, out, NORM_BLOCK)
    return out


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
