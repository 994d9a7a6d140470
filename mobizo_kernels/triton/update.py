"""What the kernels that update a parameter share: the sum of directions, its block, the norm of a change."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops.checks import check_one_float, check_param, check_state
from mobizo_kernels.triton.inplace import announce_changes, check_apart, check_no_overlap
from mobizo_kernels.triton.philox import noise_run
from mobizo_kernels.triton.tensors import (
    NOISE_BLOCKS,
    all_registers,
    contiguous_update,
    noise_launch,
)

NORM_BLOCK = 1024


@triton.jit
def add_directions(
    value,
    first,
    seeds,
    coeffs,
    count,
    stream,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """value + sum_i coeffs[i] * z(seeds[i]) of elements first .. first + BLOCK - 1, by one fma per seed."""
    for i in range(count):
        z = noise_run(tl.load(seeds + i), stream, first, BLOCK, VECTOR, DISTRIBUTION)
        value = tl.fma(tl.load(coeffs + i), z, value)
    return value


@triton.jit
def load_block(block, inside, MASKED: tl.constexpr):
    """A masked access is as wide as the mask is known to be uniform: whole blocks do without a mask."""
    return tl.load(block, mask=inside, other=0.0) if MASKED else tl.load(block)


@triton.jit
def store_block(block, value, inside, MASKED: tl.constexpr):
    if MASKED:
        tl.store(block, value, mask=inside)
    else:
        tl.store(block, value)


@triton.jit
def store_param(block, stored, value, inside, MASKED: tl.constexpr):
    """Rounds `value` into a parameter that held `stored`; returns the change of what is stored, float32."""
    rounded = value.to(stored.dtype)
    change = rounded.to(tl.float32) - stored.to(tl.float32)
    store_block(block, rounded, inside, MASKED)
    return tl.where(inside, change, 0.0) if MASKED else change


@triton.jit
def store_square(squares, change):
    """The sum of a block's squared changes, float64, in squares[program]."""
    wide = change.to(tl.float64)
    tl.store(squares + tl.program_id(0), tl.sum(wide * wide))


@triton.jit(do_not_specialize=["count"])
def norm_kernel(squares, count, out, BLOCK: tl.constexpr):
    """out[0] = sqrt(sum of squares[0 .. count - 1]), by one program."""
    offset = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        total += tl.load(squares + first + offset, mask=offset < count - first, other=0.0)
    tl.store(out, tl.sqrt(tl.sum(total)).to(tl.float32))


def begin_update(
    op: str,
    written: dict[str, torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    distribution: str,
    lr: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> None:
    """All checks. `written` are a parameter and its state, by their names; `out` is written as well."""
    (name, param), *states = written.items()
    check_param(op, name, param, seeds, coeffs, distribution)
    check_no_overlap(op, name, param)
    for state_name, state in states:
        check_state(op, state_name, state, param)
        check_no_overlap(op, state_name, state)
    read = {"seeds": seeds, "coeffs": coeffs}
    if lr is not None:
        check_one_float(op, "lr", lr, param.device)
        read["lr"] = lr
    if out is not None:
        check_one_float(op, "out", out, param.device)
        written = {**written, "out": out}
    names = [*written, *read]
    check_apart(op, list(written.values()), list(read.values()), names.__getitem__)
    announce_changes(op, list(written.values()), names.__getitem__)


def step_with_norm(
    op: str,
    kernel: Any,
    written: dict[str, torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    numbers: Sequence[torch.Tensor | float],
    distribution: str,
    out: torch.Tensor,
) -> torch.Tensor:
    """Check, and launch a kernel over one parameter; `out`, float32 [1], gets the norm of its change.

    The kernel takes the tensors of `written`, then numel, squares, seeds, coeffs, count, stream, `numbers`.
    """
    lr = next((number for number in numbers if isinstance(number, torch.Tensor)), None)
    begin_update(op, written, seeds, coeffs, distribution, lr, out)
    param, *_ = written.values()
    blocks = triton.cdiv(param.numel(), NOISE_BLOCKS[distribution])
    squares = param.new_empty(blocks, dtype=torch.float64)
    if blocks > 0:
        with ExitStack() as stack:
            values = [stack.enter_context(contiguous_update(tensor)) for tensor in written.values()]
            kernel[(blocks,)](
                *values,
                param.numel(),
                squares,
                seeds.contiguous(),
                coeffs.contiguous(),
                seeds.numel(),
                stream,
                *numbers,
                **noise_launch(values[0], distribution),
                **all_registers(),
            )
    norm_kernel[(1,)](squares, blocks, out, NORM_BLOCK)
    return out
