"""mp_outer_ on a GPU: base += c_g (x . v_g) u_g^T for the rows of each group g.

Two launches: the signs of every group, a bit each, and a kernel whose programs take a few rows of one group,
their dot products with v and then all their outputs. What it moves is x once and the output twice.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops.checks import check
from mobizo_kernels.ops.mp_outer import check_mp_outer
from mobizo_kernels.triton.inplace import announce_changes, check_apart, check_no_overlap
from mobizo_kernels.triton.philox import signs_of_bits
from mobizo_kernels.triton.shrink_expand import row_stride, with_row_stride
from mobizo_kernels.triton.signs import LARGEST_OUTER, bits_at, draw_signs, sign_calls

BLOCK_ROWS, BLOCK = 16, 128


@triton.jit
def sign_block(signs, first, count, BLOCK: tl.constexpr):
    """float32 [1, BLOCK]: signs from number `first` on; whatever lies behind the last of `count` reads it."""
    bit = (first + tl.minimum(tl.arange(0, BLOCK), count - 1)).to(tl.uint32)[None, :]
    return signs_of_bits(bits_at(signs, bit), tl.zeros_like(bit))


@triton.jit(do_not_specialize=["group_rows", "first_out", "first_in"])
def mp_outer_kernel(
    base,
    x,
    signs,
    coeffs,
    group_rows,
    in_features,
    out_features,
    base_stride,
    x_stride,
    first_out,
    first_in,
    BLOCK_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK_ROWS rows of one group; `signs` holds a row of words for each group."""
    tiles = tl.cdiv(group_rows, BLOCK_ROWS)
    group = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    is_row = (row < group_rows)[:, None]
    row = (group.to(tl.int64) * group_rows + row)[:, None]
    signs += group.to(tl.int64) * (sign_calls(out_features, in_features) * 4)
    coeff = tl.load(coeffs + group)
    if coeff != 0.0:
        dots = tl.zeros((BLOCK_ROWS,), tl.float32)
        for first in range(0, in_features, BLOCK):
            column = (first + tl.arange(0, BLOCK))[None, :]
            inside = is_row & (column < in_features)
            value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
            v = sign_block(signs, first_in + first, in_features - first, BLOCK)
            dots += tl.sum(value * v, axis=1)
        slopes = (coeff * dots)[:, None]
        for first in range(0, out_features, BLOCK):
            column = (first + tl.arange(0, BLOCK))[None, :]
            inside = is_row & (column < out_features)
            at = base + row * base_stride + column
            old = tl.load(at, mask=inside, other=0.0)
            u = sign_block(signs, first_out + first, out_features - first, BLOCK)
            value = old.to(tl.float32) + slopes * u
            tl.store(at, value.to(old.dtype), mask=inside)


def mp_outer_(
    base: torch.Tensor,
    x: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    transposed: bool = False,
) -> None:
    """:func:`mobizo_kernels.ops.mp_outer_` on a GPU."""
    op = "mp_outer_"
    check_mp_outer(base, x, seeds, coeffs)
    (height, width), groups = (base.shape[-1], x.shape[-1]), seeds.numel()
    got = f"got {height} and {width}"
    check(op, height + width <= LARGEST_OUTER, f"out and in must be at most {LARGEST_OUTER} together, {got}")
    check_no_overlap(op, "base", base)
    read = [x, seeds, coeffs]
    names = ["base", "x", "seeds", "coeffs"]
    check_apart(op, [base], read, names.__getitem__)
    announce_changes(op, [base], names.__getitem__)
    group_rows = math.prod(x.shape[:-1]) // groups
    if group_rows == 0 or height == 0:
        return
    out = base if row_stride(base) is not None else base.contiguous()
    rows, x_stride = with_row_stride(x)
    signs = draw_signs(seeds.contiguous(), stream, height, width)
    mp_outer_kernel[(groups * triton.cdiv(group_rows, BLOCK_ROWS),)](
        out,
        rows,
        signs,
        coeffs.contiguous(),
        group_rows,
        width,
        height,
        row_stride(out),
        x_stride,
        width if transposed else 0,
        0 if transposed else height,
        BLOCK_ROWS,
        BLOCK,
    )
    if out is not base:
        base.copy_(out)
