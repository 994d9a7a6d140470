"""zo_momentum and foreach_zo_momentum_ on a GPU: one pass over the parameter and its momentum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from mobizo_kernels.triton.foreach import step_of_each, table_row, tensor_in
from mobizo_kernels.triton.update import (
    add_directions,
    load_block,
    step_with_norm,
    store_block,
    store_param,
    store_square,
)


@triton.jit
def _step(
    param,
    momentum,
    first,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    beta,
    decay,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    offset = tl.arange(0, BLOCK)
    inside = offset < numel - first
    block = momentum + first + offset
    value = load_block(block, inside, MASKED) * beta
    value = add_directions(value, first, seeds, coeffs, count, stream, BLOCK, VECTOR, DISTRIBUTION)
    store_block(block, value, inside, MASKED)
    block = param + first + offset
    stored = load_block(block, inside, MASKED)
    return store_param(block, stored, stored.to(tl.float32) * decay + value, inside, MASKED)


@triton.jit
def momentum_block(
    param,
    momentum,
    first,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    beta,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """The step of elements first .. first + BLOCK - 1; returns the stored values' change, float32."""
    if first + BLOCK <= numel:
        change = _step(
            param, momentum, first, numel, seeds, coeffs, count, stream, beta, decay, False, BLOCK, VECTOR,
            DISTRIBUTION,
        )  # fmt: skip
    else:
        change = _step(
            param, momentum, first, numel, seeds, coeffs, count, stream, beta, decay, True, BLOCK, VECTOR,
            DISTRIBUTION,
        )  # fmt: skip
    return change


@triton.jit(do_not_specialize=["numel", "count", "stream"])
def zo_momentum_kernel(
    param,
    momentum,
    numel,
    squares,
    seeds,
    coeffs,
    count,
    stream,
    beta,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """A block of elements per program, the sum of its squared changes in squares[program], float64."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    change = momentum_block(
        param, momentum, first, numel, seeds, coeffs, count, stream, beta, decay, BLOCK, VECTOR, DISTRIBUTION
    )
    store_square(squares, change)


@triton.jit(do_not_specialize=["count"])
def foreach_zo_momentum_kernel(
    owners,
    table,
    seeds,
    coeffs,
    count,
    beta,
    decay,
    DTYPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """:func:`zo_momentum_kernel` for every parameter of a table, without the squares."""
    row, first, numel, stream = table_row(owners, table, 2, BLOCK)
    param, momentum = tensor_in(row, 0, DTYPE, ALIGNMENT), tensor_in(row, 1, tl.float32, ALIGNMENT)
    momentum_block(
        param, momentum, first, numel, seeds, coeffs, count, stream, beta, decay, BLOCK, VECTOR, DISTRIBUTION
    )


def zo_momentum_out(
    param: torch.Tensor,
    momentum: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    beta: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """:func:`zo_momentum` with the norm in `out`, float32 [1]."""
    written, numbers = {"param": param, "momentum": momentum}, (beta, decay)
    return step_with_norm(
        "zo_momentum", zo_momentum_kernel, written, seeds, coeffs, stream, numbers, distribution, out
    )


def zo_momentum(
    param: torch.Tensor,
    momentum: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    beta: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.zo_momentum` on a GPU."""
    norm = param.new_empty(1, dtype=torch.float32)
    return zo_momentum_out(param, momentum, seeds, coeffs, stream, beta, decay, distribution, out=norm)


def foreach_zo_momentum_(
    params: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    streams: Sequence[int],
    beta: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:
    """:func:`mobizo_kernels.ops.foreach_zo_momentum_` on a GPU, launched as `foreach_perturb_` is."""
    step_of_each(
        "foreach_zo_momentum_",
        foreach_zo_momentum_kernel,
        {"params": params, "momenta": momenta},
        seeds,
        coeffs,
        streams,
        (beta, decay),
        distribution,
        lambda i: zo_momentum(params[i], momenta[i], seeds, coeffs, streams[i], beta, decay, distribution),
    )
