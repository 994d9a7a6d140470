"""zo_sign and foreach_zo_sign_ on a GPU: one pass over the parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops.checks import check_one_float
from mobizo_kernels.triton.foreach import step_of_each, table_row, tensor_in
from mobizo_kernels.triton.update import (
    add_directions,
    load_block,
    step_with_norm,
    store_param,
    store_square,
)


@triton.jit
def _step(param, first, numel, g, lr, decay, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    inside = offset < numel - first
    block = param + first + offset
    stored = load_block(block, inside, MASKED)
    sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, g + 0.0))  # 0 of a zero of either sign; NaN stays NaN
    value = stored.to(tl.float32) * decay - tl.load(lr) * sign
    return store_param(block, stored, value, inside, MASKED)


@triton.jit
def sign_block(
    param,
    first,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    lr,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """The step of elements first .. first + BLOCK - 1; returns the stored values' change, float32."""
    g = tl.zeros((BLOCK,), tl.float32)
    g = add_directions(g, first, seeds, coeffs, count, stream, BLOCK, VECTOR, DISTRIBUTION)
    if first + BLOCK <= numel:
        change = _step(param, first, numel, g, lr, decay, False, BLOCK)
    else:
        change = _step(param, first, numel, g, lr, decay, True, BLOCK)
    return change


@triton.jit(do_not_specialize=["numel", "count", "stream"])
def zo_sign_kernel(
    param,
    numel,
    squares,
    seeds,
    coeffs,
    count,
    stream,
    lr,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """A block of elements per program, the sum of its squared changes in squares[program], float64."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    change = sign_block(
        param, first, numel, seeds, coeffs, count, stream, lr, decay, BLOCK, VECTOR, DISTRIBUTION
    )
    store_square(squares, change)


@triton.jit(do_not_specialize=["count"])
def foreach_zo_sign_kernel(
    owners,
    table,
    seeds,
    coeffs,
    count,
    lr,
    decay,
    DTYPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """:func:`zo_sign_kernel` for every parameter of a table, without the squares."""
    row, first, numel, stream = table_row(owners, table, 1, BLOCK)
    param = tensor_in(row, 0, DTYPE, ALIGNMENT)
    sign_block(param, first, numel, seeds, coeffs, count, stream, lr, decay, BLOCK, VECTOR, DISTRIBUTION)


def zo_sign_out(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """:func:`zo_sign` with the norm in `out`, float32 [1]."""
    written, numbers = {"param": param}, (lr, decay)
    return step_with_norm(
        "zo_sign", zo_sign_kernel, written, seeds, coeffs, stream, numbers, distribution, out
    )


def zo_sign(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.zo_sign` on a GPU."""
    norm = param.new_empty(1, dtype=torch.float32)
    return zo_sign_out(param, seeds, coeffs, lr, stream, decay, distribution, out=norm)


def foreach_zo_sign_(
    params: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    streams: Sequence[int],
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:
    """:func:`mobizo_kernels.ops.foreach_zo_sign_` on a GPU, launched as `foreach_perturb_` is."""
    check_one_float("foreach_zo_sign_", "lr", lr, seeds.device)
    step_of_each(
        "foreach_zo_sign_",
        foreach_zo_sign_kernel,
        {"params": params},
        seeds,
        coeffs,
        streams,
        (lr, decay),
        distribution,
        lambda i: zo_sign(params[i], seeds, coeffs, lr, streams[i], decay, distribution),
    )
