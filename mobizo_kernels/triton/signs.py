"""Directions "outer" on a GPU: z = u v^T with u and v of signs, from a scratch that holds a bit for each.

A matrix of [rows, columns] takes rows + columns signs for each seed. They are drawn once in a call, as int32
words: u from bit 0 on and v behind it, in whole Philox calls of 128 bits. Whatever uses them loads a word of
u and a word of v for a run of RUN neighbours in a row, from a cache. To draw them there instead would take
two Philox calls, about a hundred instructions each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops.checks import check
from mobizo_kernels.triton.philox import interleave4, philox, signs_of_bits

SIGN_BLOCK = tl.constexpr(128)  # Philox calls of a block of signs
SIGN_PROGRAMS = 64  # that share the signs of one seed, at most
LARGEST_OUTER = 2**31 - 2**16  # rows + columns: what is numbered in 32 bits, a block of elements beyond them


@triton.jit
def sign_calls(rows, columns):
    """Philox calls for the signs of one seed; each makes four words."""
    return tl.cdiv(rows + columns, 128)


@triton.jit
def store_signs(signs, seed, stream, calls, first, step):
    """Blocks first, first + step, ... of the signs of one seed, of `calls` Philox calls in all."""
    for block in range(first, tl.cdiv(calls, SIGN_BLOCK), step):
        call = (tl.arange(0, SIGN_BLOCK) + block * SIGN_BLOCK).to(tl.uint32)
        w0, w1, w2, w3 = philox(seed, stream, call, tl.full((), 0, tl.uint32))
        word = tl.arange(0, SIGN_BLOCK * 4) + block * SIGN_BLOCK * 4
        words = interleave4(w0, w1, w2, w3).to(tl.int32, bitcast=True)
        tl.store(signs + word, words, mask=word < calls * 4)


@triton.jit(do_not_specialize=["stream", "calls"])
def signs_kernel(signs, seeds, stream, calls):
    """signs[i] = those of seeds[i], int32 [count, 4 * calls], by a row of programs."""
    i = tl.program_id(0).to(tl.int64)
    store_signs(
        signs + i * calls * 4, tl.load(seeds + i), stream, calls, tl.program_id(1), tl.num_programs(1)
    )


@triton.jit
def places_of_signs(first, rows, columns, BLOCK: tl.constexpr, RUN: tl.constexpr):
    """The bits of u and of the first v of each run of RUN elements, uint32 [BLOCK // RUN], from `first` on.

    Runs behind the last row get its bit.
    """
    wide = columns.to(tl.int64)
    top = first // wide
    place = (first - top * wide).to(tl.uint32) + RUN * tl.arange(0, BLOCK // RUN).to(tl.uint32)
    down = place // columns.to(tl.uint32)
    row = tl.minimum(top.to(tl.uint32) + down, rows.to(tl.uint32) - 1)
    return row, rows.to(tl.uint32) + (place - down * columns.to(tl.uint32))


@triton.jit
def bits_at(signs, bit):
    """The bits from number `bit` on, to the end of their word, of a block of numbers, uint32."""
    return tl.load(signs + (bit >> 5)).to(tl.uint32, bitcast=True) >> (bit & 31)


@triton.jit
def outer_run(signs, row, column, BLOCK: tl.constexpr, RUN: tl.constexpr):
    """float32 [BLOCK]: z of the elements whose bits :func:`places_of_signs` has told."""
    bits = bits_at(signs, column) ^ (0 - (bits_at(signs, row) & 1))
    place = tl.arange(0, RUN).to(tl.uint32)
    return signs_of_bits(bits[:, None], place[None, :]).reshape(BLOCK)


def distribution_for(distribution: str, shape: Sequence[int]) -> str:
    """A parameter of fewer than two dimensions has no rows and columns: its directions "outer" are signs."""
    return "rademacher" if distribution == "outer" and len(shape) < 2 else distribution


def matrix_of(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a parameter of two or more dimensions."""
    return shape[0], math.prod(shape[1:])


def check_outer(op: str, name: str, shape: Sequence[int], distribution: str) -> None:
    """Refuses a matrix whose rows and columns are too many for directions "outer"."""
    if distribution_for(distribution, shape) == "outer":
        got = f"got shape {tuple(shape)}"
        message = f"{name} must have at most {LARGEST_OUTER} rows and columns for directions 'outer', {got}"
        check(op, sum(matrix_of(shape)) <= LARGEST_OUTER, message)


def calls_for(rows: int, columns: int) -> int:
    """:func:`sign_calls` on the host."""
    return (rows + columns + 127) // 128


def sign_grid(seeds: int, calls: int) -> tuple[int, int]:
    """Programs for `seeds` seeds, and those that share one of them."""
    return seeds, min((calls + SIGN_BLOCK.value - 1) // SIGN_BLOCK.value, SIGN_PROGRAMS)


def draw_signs(seeds: torch.Tensor, stream: int, rows: int, columns: int) -> torch.Tensor:
    """The signs of every seed for one matrix: int32 [seeds, words]."""
    calls = calls_for(rows, columns)
    signs = torch.empty((seeds.numel(), 4 * calls), dtype=torch.int32, device=seeds.device)
    if signs.numel() > 0:
        signs_kernel[sign_grid(seeds.numel(), calls)](signs, seeds, stream, calls)
    return signs
