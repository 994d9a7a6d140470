"""zo_sign and foreach_zo_sign_ on a GPU: one pass over the parameter."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mobizo_kernels.triton.launch import update, update_each
from mobizo_kernels.triton.tensors import all_registers
from mobizo_kernels.triton.update import add_directions, zeros_beside


@triton.jit
def zo_sign_step(directions, at, param, lr, decay):
    g = add_directions(zeros_beside(param), *directions)
    sign = tl.where(g > 0, 1.0, tl.where(g < 0, -1.0, g + 0.0))  # 0 of a zero of either sign; NaN stays NaN
    return param * decay - tl.load(lr) * sign


def zo_sign(
    param: Tensor, seeds: Tensor, coeffs: Tensor, lr: Tensor, stream: int, decay: float = 1.0,
    distribution: str = "gaussian", *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """:func:`mobizo_kernels.ops.zo_sign` on a GPU."""
    written, numbers, op = {"param": param}, (lr, decay), "zo_sign"
    return update(op, zo_sign_step, written, seeds, coeffs, stream, numbers, distribution, out)


def foreach_zo_sign_(
    params: Sequence[Tensor], seeds: Tensor, coeffs: Tensor, lr: Tensor, streams: Sequence[int],
    decay: float = 1.0, distribution: str = "gaussian",
) -> None:  # fmt: skip
    """:func:`mobizo_kernels.ops.foreach_zo_sign_` on a GPU, launched as `foreach_perturb_` is."""
    lists, numbers, op = {"params": params}, (lr, decay), "foreach_zo_sign_"
    update_each(op, zo_sign_step, lists, seeds, coeffs, streams, numbers, distribution, **all_registers())
