"""zo_adam and foreach_zo_adam_ on a GPU: one pass over the parameter and both averages."""

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
    store_block,
    store_param,
    store_square,
)


@triton.jit
def _step(
    param,
    exp_avg,
    exp_avg_sq,
    first,
    numel,
    g,
    lr,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    decay,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offset = tl.arange(0, BLOCK)
    inside = offset < numel - first
    block, m_block, v_block = param + first + offset, exp_avg + first + offset, exp_avg_sq + first + offset
    stored = load_block(block, inside, MASKED)
    m = tl.fma(beta1, load_block(m_block, inside, MASKED), one_minus_beta1 * g)
    v = tl.fma(beta2, load_block(v_block, inside, MASKED), one_minus_beta2 * g * g)
    store_block(m_block, m, inside, MASKED)
    store_block(v_block, v, inside, MASKED)
    step = tl.div_rn(m, tl.sqrt_rn(v) + eps)
    # -lr is 0 - lr to Triton, which loses the sign of a zero.
    value = tl.fma(tl.load(lr) * -1.0, step, stored.to(tl.float32) * decay)
    return store_param(block, stored, value, inside, MASKED)


@triton.jit
def adam_block(
    param,
    exp_avg,
    exp_avg_sq,
    first,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    lr,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """The step of elements first .. first + BLOCK - 1; returns the stored values' change, float32."""
    g = tl.zeros((BLOCK,), tl.float32)
    g = add_directions(g, first, seeds, coeffs, count, stream, BLOCK, VECTOR, DISTRIBUTION)
    if first + BLOCK <= numel:
        change = _step(
            param, exp_avg, exp_avg_sq, first, numel, g, lr, beta1, one_minus_beta1, beta2, one_minus_beta2,
            eps, decay, False, BLOCK,
        )  # fmt: skip
    else:
        change = _step(
            param, exp_avg, exp_avg_sq, first, numel, g, lr, beta1, one_minus_beta1, beta2, one_minus_beta2,
            eps, decay, True, BLOCK,
        )  # fmt: skip
    return change


@triton.jit(do_not_specialize=["numel", "count", "stream"])
def zo_adam_kernel(
    param,
    exp_avg,
    exp_avg_sq,
    numel,
    squares,
    seeds,
    coeffs,
    count,
    stream,
    lr,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """A block of elements per program, the sum of its squared changes in squares[program], float64."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    change = adam_block(
        param, exp_avg, exp_avg_sq, first, numel, seeds, coeffs, count, stream, lr, beta1, one_minus_beta1,
        beta2, one_minus_beta2, eps, decay, BLOCK, VECTOR, DISTRIBUTION,
    )  # fmt: skip
    store_square(squares, change)


@triton.jit(do_not_specialize=["count"])
def foreach_zo_adam_kernel(
    owners,
    table,
    seeds,
    coeffs,
    count,
    lr,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    eps,
    decay,
    DTYPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """:func:`zo_adam_kernel` for every parameter of a table, without the squares."""
    row, first, numel, stream = table_row(owners, table, 3, BLOCK)
    param, exp_avg = tensor_in(row, 0, DTYPE, ALIGNMENT), tensor_in(row, 1, tl.float32, ALIGNMENT)
    exp_avg_sq = tensor_in(row, 2, tl.float32, ALIGNMENT)
    adam_block(
        param, exp_avg, exp_avg_sq, first, numel, seeds, coeffs, count, stream, lr, beta1, one_minus_beta1,
        beta2, one_minus_beta2, eps, decay, BLOCK, VECTOR, DISTRIBUTION,
    )  # fmt: skip


def zo_adam_out(
    param: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    stream: int,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """:func:`zo_adam` with the norm in `out`, float32 [1]."""
    written = {"param": param, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    numbers = (lr, beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, decay)
    return step_with_norm(
        "zo_adam", zo_adam_kernel, written, seeds, coeffs, stream, numbers, distribution, out
    )


def zo_adam(
    param: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    stream: int,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.zo_adam` on a GPU."""
    norm = param.new_empty(1, dtype=torch.float32)
    rest = (seeds, coeffs, lr, stream, beta1, beta2, eps, decay, distribution)
    return zo_adam_out(param, exp_avg, exp_avg_sq, *rest, out=norm)


def foreach_zo_adam_(
    params: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    streams: Sequence[int],
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:
    """:func:`mobizo_kernels.ops.foreach_zo_adam_` on a GPU, launched as `foreach_perturb_` is."""
    check_one_float("foreach_zo_adam_", "lr", lr, seeds.device)
    numbers = (lr, beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, decay)

    def alone(i: int) -> None:
        rest = (seeds, coeffs, lr, streams[i], beta1, beta2, eps, decay, distribution)
        zo_adam(params[i], exp_avgs[i], exp_avg_sqs[i], *rest)

    step_of_each(
        "foreach_zo_adam_",
        foreach_zo_adam_kernel,
        {"params": params, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs},
        seeds,
        coeffs,
        streams,
        numbers,
        distribution,
        alone,
    )
