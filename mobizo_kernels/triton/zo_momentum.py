"""zo_momentum and foreach_zo_momentum_ on a GPU: one pass over the parameter and its momentum."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from mobizo_kernels.triton.launch import update, update_each
from mobizo_kernels.triton.tensors import all_registers
from mobizo_kernels.triton.update import add_directions, load_block, store_block


@triton.jit
def zo_momentum_step(directions, at, param: tl.tensor, momentum, beta, decay):
    value = add_directions(load_block(momentum, *at) * beta, *directions)
    store_block(momentum, value, *at)
    return param * decay + value


def zo_momentum(
    param: Tensor, momentum: Tensor, seeds: Tensor, coeffs: Tensor, stream: int, beta: float,
    decay: float = 1.0, distribution: str = "gaussian", *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """:func:`mobizo_kernels.ops.zo_momentum` on a GPU."""
    written, numbers, op = {"param": param, "momentum": momentum}, (beta, decay), "zo_momentum"
    return update(op, zo_momentum_step, written, seeds, coeffs, stream, numbers, distribution, out)


def foreach_zo_momentum_(
    params: Sequence[Tensor], momenta: Sequence[Tensor], seeds: Tensor, coeffs: Tensor,
    streams: Sequence[int], beta: float, decay: float = 1.0, distribution: str = "gaussian",
) -> None:  # fmt: skip
    """:func:`mobizo_kernels.ops.foreach_zo_momentum_` on a GPU, launched as `foreach_perturb_` is."""
    lists, numbers, op = {"params": params, "momenta": momenta}, (beta, decay), "foreach_zo_momentum_"
    step, options = zo_momentum_step, all_registers()
    update_each(op, step, lists, seeds, coeffs, streams, numbers, distribution, **options)
