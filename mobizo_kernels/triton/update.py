"""The kernels of all updates. Each op brings a step: what becomes of a block of the parameter and its state.

A step is a jit function of `directions` and `at`, which it passes on to :func:`add_directions`,
:func:`load_block` and :func:`store_block`; the parameter's values, float32; pointers to the block of each
state; the op's numbers. It stores the new state and returns the parameter's new values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from mobizo_kernels.triton.philox import noise_run
from mobizo_kernels.triton.signs import outer_run, places_of_signs, sign_calls, store_signs

# Sums of squares in float32 that lost nothing to its range, and factors that bring changes beyond it there.
LEAST_SUM, GREATEST_SUM = tl.constexpr(2.0**-80), tl.constexpr(2.0**120)
ENLARGE, SHRINK = tl.constexpr(2.0**100), tl.constexpr(2.0**-80)
# Columns of a table: number of elements, stream, first block; rows, columns and number of the first sign word
# of one seed, for directions "outer"; then the addresses of parameter and state.
MATRIX, ADDRESSES = tl.constexpr(3), tl.constexpr(6)


@triton.jit
def add_directions(
    value, first, seeds, coeffs, count, stream, signs, rows, columns, BLOCK: tl.constexpr,
    VECTOR: tl.constexpr, RUN: tl.constexpr, DISTRIBUTION: tl.constexpr,
):  # fmt: skip
    """value + sum_i coeffs[i] * z(seeds[i]) of elements first .. first + BLOCK - 1, by one fma per seed."""
    if DISTRIBUTION == "outer":
        row, column = places_of_signs(first, rows, columns, BLOCK, RUN)
        words = sign_calls(rows, columns) * 4
        for i in range(count):
            z = outer_run(signs, row, column, BLOCK, RUN)
            value = tl.fma(tl.load(coeffs + i), z, value)
            signs += words
    else:
        for i in range(count):
            z = noise_run(tl.load(seeds + i), stream, first, BLOCK, VECTOR, DISTRIBUTION)
            value = tl.fma(tl.load(coeffs + i), z, value)
    return value


@triton.jit
def zeros_beside(param):
    """Zeros to sum directions from, held by the threads that hold `param`.

    A constant would be held by others, and the noise of every direction would cross threads to get there.
    That these bits are 0 is seen by LLVM, after each value has got its thread.
    """
    return ((param.to(tl.int32, bitcast=True) & 1) & 2).to(tl.float32)


@triton.jit
def load_block(block, inside, MASKED: tl.constexpr):
    """A masked access is as wide as the mask is known to be uniform: whole blocks do without a mask."""
    return tl.load(block, mask=inside, other=0.0) if MASKED else tl.load(block)


@triton.jit
def store_block(block, value, inside, MASKED: tl.constexpr):
    tl.store(block, value, mask=inside if MASKED else None)


@triton.jit
def _move(
    STEP: tl.constexpr, tensors, first, numel, directions, numbers, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    offset = tl.max_contiguous(tl.arange(0, BLOCK), VECTOR)
    inside = offset < tl.minimum(numel - first, BLOCK).to(tl.int32)  # in 64 bits it takes many registers
    blocks = [tensor + first + offset for tensor in tensors]
    held = load_block(blocks[0], inside, MASKED)
    moved = STEP(directions, (inside, MASKED), held.to(tl.float32), *blocks[1:], *numbers).to(held.dtype)
    store_block(blocks[0], moved, inside, MASKED)
    change = moved.to(tl.float32) - held.to(tl.float32)
    return tl.where(inside, change, 0.0) if MASKED else change


@triton.jit
def _update(
    STEP: tl.constexpr, tensors, first, numel, directions, numbers, BLOCK: tl.constexpr, VECTOR: tl.constexpr
):
    """The step of elements first .. first + BLOCK - 1; returns the stored values' change, float32."""
    if first + BLOCK <= numel:
        change = _move(STEP, tensors, first, numel, directions, numbers, BLOCK, VECTOR, False)
    else:
        change = _move(STEP, tensors, first, numel, directions, numbers, BLOCK, VECTOR, True)
    return change


@triton.jit
def sum_of_squares(change):
    """float64; summed in float32, and once more where that gave too much or too little for it, or NaN."""
    total = tl.sum(change * change)
    if (total >= LEAST_SUM) & (total <= GREATEST_SUM):
        result = total.to(tl.float64)
    else:
        small = total < LEAST_SUM
        scaled = change * tl.where(small, ENLARGE, SHRINK)
        unscale = tl.where(small, 1 / (ENLARGE * ENLARGE), 1 / (SHRINK * SHRINK))  # float64
        result = tl.sum(scaled * scaled).to(tl.float64) * unscale
    return result


def _name(prefix: str) -> Callable[[Any], str]:
    """Of a kernel, by its step, which profilers show: zo_adam_kernel of zo_adam_step."""
    return lambda kernel: f"{prefix}{kernel.constants['STEP'].__name__.removesuffix('step')}kernel"


@triton.jit(do_not_specialize=["numel", "count", "stream", "rows", "columns"], repr=_name(""))
def update_kernel(
    tensors, numel, squares, seeds, coeffs, count, stream, signs, rows, columns, numbers, STEP: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, RUN: tl.constexpr, DISTRIBUTION: tl.constexpr,
):  # fmt: skip
    """A block of elements per program; squares[program], float64, gets the sum of its squared changes."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    change = _update(
        STEP, tensors, first, numel,
        (first, seeds, coeffs, count, stream, signs, rows, columns, BLOCK, VECTOR, RUN, DISTRIBUTION),
        numbers, BLOCK, VECTOR,
    )  # fmt: skip
    if squares is not None:
        tl.store(squares + tl.program_id(0), sum_of_squares(change))


@triton.jit(do_not_specialize=["count"], repr=_name("foreach_"))
def foreach_update_kernel(
    owners, table, seeds, coeffs, count, signs, numbers, STEP: tl.constexpr, STATES: tl.constexpr,
    DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
    RUN: tl.constexpr, DISTRIBUTION: tl.constexpr,
):  # fmt: skip
    """:func:`update_kernel` for every parameter of a table; program p updates a block of owners[p]."""
    row = table + (ADDRESSES + 1 + STATES) * tl.load(owners + tl.program_id(0))
    first = (tl.program_id(0) - tl.load(row + 2)) * BLOCK
    tensors = ()
    for i in tl.static_range(1 + STATES):
        tensor = tl.load(row + ADDRESSES + i).to(tl.pointer_type(DTYPE if i == 0 else tl.float32))
        tensors = tensors + (tl.multiple_of(tensor, ALIGNMENT),)  # type: ignore[assignment]
    if DISTRIBUTION == "outer":
        signs += tl.load(row + MATRIX + 2) * count
    rows, columns = tl.load(row + MATRIX), tl.load(row + MATRIX + 1)
    _update(
        STEP, tensors, first, tl.load(row),
        (
            first, seeds, coeffs, count, tl.load(row + 1), signs, rows, columns, BLOCK, VECTOR, RUN,
            DISTRIBUTION,
        ),
        numbers, BLOCK, VECTOR,
    )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def foreach_signs_kernel(signs, table, seeds, count, STATES: tl.constexpr):
    """The signs of every parameter of a table, int32: [count, words] of one after the other, by a row of
    programs for each parameter and seed.
    """
    row = table + (ADDRESSES + 1 + STATES) * (tl.program_id(0) // count)
    i = tl.program_id(0) % count
    calls = sign_calls(tl.load(row + MATRIX), tl.load(row + MATRIX + 1)).to(tl.int32)
    signs += tl.load(row + MATRIX + 2) * count + i.to(tl.int64) * calls * 4
    store_signs(signs, tl.load(seeds + i), tl.load(row + 1), calls, tl.program_id(1), tl.num_programs(1))


@triton.jit(do_not_specialize=["count"])
def sum_kernel(squares, count, out, BLOCK: tl.constexpr, ROOT: tl.constexpr):
    """out[program] = sum of a block of squares[0 .. count - 1], float64, or its root, float32."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(squares + index, mask=index < count, other=0.0))
    tl.store(out + tl.program_id(0), tl.sqrt(total).to(tl.float32) if ROOT else total)
