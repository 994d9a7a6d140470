"""zo_adam and foreach_zo_adam_ on a GPU: one pass over the parameter and both averages."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mobizo_kernels.triton.launch import update, update_each
from mobizo_kernels.triton.update import add_directions, load_block, store_block, zeros_beside


@triton.jit
def zo_adam_step(
    directions, at, param, exp_avg, exp_avg_sq, lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay
):
    g = add_directions(zeros_beside(param), *directions)
    m = tl.fma(beta1, load_block(exp_avg, *at), one_minus_beta1 * g)
    v = tl.fma(beta2, load_block(exp_avg_sq, *at), one_minus_beta2 * g * g)
    store_block(exp_avg, m, *at)
    store_block(exp_avg_sq, v, *at)
    step = tl.div_rn(m, tl.sqrt_rn(v) + eps)
    # -lr is 0 - lr to Triton, which loses the sign of a zero.
    return tl.fma(tl.load(lr) * -1.0, step, param * decay)


def zo_adam(
    param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, seeds: Tensor, coeffs: Tensor, lr: Tensor,
    stream: int, beta1: float, beta2: float, eps: float, decay: float = 1.0, distribution: str = "gaussian",
    *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """:func:`mobizo_kernels.ops.zo_adam` on a GPU."""
    written, op = {"param": param, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, "zo_adam"
    numbers = (lr, beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, decay)
    return update(op, zo_adam_step, written, seeds, coeffs, stream, numbers, distribution, out)


def foreach_zo_adam_(
    params: Sequence[Tensor], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor], seeds: Tensor,
    coeffs: Tensor, lr: Tensor, streams: Sequence[int], beta1: float, beta2: float, eps: float,
    decay: float = 1.0, distribution: str = "gaussian",
) -> None:  # fmt: skip
    """:func:`mobizo_kernels.ops.foreach_zo_adam_` on a GPU, launched as `foreach_perturb_` is."""
    lists, op = {"params": params, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}, "foreach_zo_adam_"
    numbers = (lr, beta1, 1.0 - beta1, beta2, 1.0 - beta2, eps, decay)
    update_each(op, zo_adam_step, lists, seeds, coeffs, streams, numbers, distribution)
