"""perturb_ and foreach_perturb_ on a GPU: one pass over the parameters, one launch for all of a dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from mobizo_kernels.triton.foreach import step_of_each, table_row, tensor_in
from mobizo_kernels.triton.tensors import NOISE_BLOCKS, contiguous_update, noise_launch
from mobizo_kernels.triton.update import add_directions, begin_update, load_block, store_param


@triton.jit
def _update(
    param,
    first,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    decay,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    offset = tl.arange(0, BLOCK)
    inside = offset < numel - first
    block = param + first + offset
    stored = load_block(block, inside, MASKED)
    value = stored.to(tl.float32) * decay
    value = add_directions(value, first, seeds, coeffs, count, stream, BLOCK, VECTOR, DISTRIBUTION)
    return store_param(block, stored, value, inside, MASKED)


@triton.jit
def update_block(
    param,
    first,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """Updates elements first .. first + BLOCK - 1 of `param`; returns the stored values' change, float32."""
    if first + BLOCK <= numel:
        change = _update(
            param, first, numel, seeds, coeffs, count, stream, decay, False, BLOCK, VECTOR, DISTRIBUTION
        )
    else:
        change = _update(
            param, first, numel, seeds, coeffs, count, stream, decay, True, BLOCK, VECTOR, DISTRIBUTION
        )
    return change


@triton.jit(do_not_specialize=["numel", "count", "stream"])
def perturb_kernel(
    param,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """param = decay * param + sum_i coeffs[i] * z(seeds[i], stream), a block of elements per program."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    update_block(param, first, numel, seeds, coeffs, count, stream, decay, BLOCK, VECTOR, DISTRIBUTION)


@triton.jit(do_not_specialize=["count"])
def foreach_perturb_kernel(
    owners,
    table,
    seeds,
    coeffs,
    count,
    decay,
    DTYPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """:func:`perturb_kernel` for every parameter of a table; program p updates one of owners[p]."""
    row, first, numel, stream = table_row(owners, table, 1, BLOCK)
    param = tensor_in(row, 0, DTYPE, ALIGNMENT)
    update_block(param, first, numel, seeds, coeffs, count, stream, decay, BLOCK, VECTOR, DISTRIBUTION)


def perturb_(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.perturb_` on a GPU."""
    begin_update("perturb_", {"self": param}, seeds, coeffs, distribution)
    if param.numel() > 0:
        with contiguous_update(param) as values:
            grid = (triton.cdiv(values.numel(), NOISE_BLOCKS[distribution]),)
            perturb_kernel[grid](
                values,
                values.numel(),
                seeds.contiguous(),
                coeffs.contiguous(),
                seeds.numel(),
                stream,
                decay,
                **noise_launch(values, distribution),
            )
    return param


def foreach_perturb_(
    params: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    streams: Sequence[int],
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:
    """:func:`mobizo_kernels.ops.foreach_perturb_` on a GPU: one launch for all parameters of a dtype.

    A parameter that is not contiguous takes a launch and two copies of its own. The first call with a set of
    parameters copies a table to the device, which must not happen inside the capture of a CUDA graph.
    """
    step_of_each(
        "foreach_perturb_",
        foreach_perturb_kernel,
        {"self": params},
        seeds,
        coeffs,
        streams,
        (decay,),
        distribution,
        lambda i: perturb_(params[i], seeds, coeffs, streams[i], decay, distribution),
    )
