"""mp_lora_linear on a GPU: (a) the library's linear, then mp_lora in place, or (b) one kernel for all of it.

(a) reads x once more, and reads and writes the output once more: 2 M (in + 2 out) bytes in 16-bit storage. It
is the default. (b) moves nothing twice: it makes x A^T beside x W^T from the same tiles of x and adds the
perturbed expand to the accumulator. But each column of tiles makes x A^T anew, each tile draws noise for 128
rows alone, and libraries multiply faster than this kernel. :func:`fuses` weighs the two.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq
from triton.tools.tensor_descriptor import TensorDescriptor

from mobizo_kernels.ops.mp_lora import PerturbedAdapter, check_mp_lora_linear
from mobizo_kernels.triton.matrix import (
    depth_first,
    depth_of,
    dot,
    load_b,
    noise_of_b,
    perturbed,
    ranks_of_depth,
    width_of,
)
from mobizo_kernels.triton.mp_lora import run
from mobizo_kernels.triton.philox import noise_by_element, noise_run
from mobizo_kernels.triton.shrink_expand import index_type, row_stride, with_row_stride
from mobizo_kernels.triton.signs import check_outer

BLOCK_ROWS, BLOCK_IN = 128, 64
LARGEST_FUSED_RANK = 16
# Programs that run together take squares of tiles, whose rows of x and weight then come from the cache.
SQUARE = tl.constexpr(8)

# The model behind `fuses`, of which nothing is measured on this kernel. An H100 multiplies 16-bit numbers at
# about 700 TFLOP/s and moves 3 TB/s. A Gaussian value takes 54 instructions, each as long as 24 operations of
# the matrix units. A library is taken to be a fifth faster than a plain Triton kernel.
OPERATIONS_PER_BYTE = 230
OPERATIONS_PER_INSTRUCTION = 24
INSTRUCTIONS_PER_NOISE = 54
LEAD_OF_LIBRARY = 0.2
FEWEST_PROGRAMS = 128
CLEAR_WIN = 0.75  # while nothing is measured, the share of the cost of (a) below which (b) is taken


@triton.jit(do_not_specialize=["rows", "groups", "stream"])
def linear_kernel(
    x,
    weight,
    bias,
    lora_a,
    lora_b,
    seeds,
    coeffs,
    out,
    rows,
    in_features,
    out_features,
    groups,
    scaling,
    stream: tl.int64,
    RANK: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """A tile of out = x W^T + bias + scaling * s (B + coeff z)^T, s = x A^T; `rows` are those of a group.
    With directions "outer" z is u v^T, and the last term is scaling * coeff * (s . v) u^T.

    x and weight are descriptors of matrices; lora_a has their dtype.
    """
    column_tiles = tl.cdiv(out_features, BLOCK_OUT)
    tiles = tl.cdiv(rows, BLOCK_ROWS)
    band = tl.program_id(0) // (SQUARE * column_tiles) * SQUARE
    height = min(tiles * groups - band, SQUARE)
    in_band = tl.program_id(0) % (SQUARE * column_tiles)
    group = (band + in_band % height) // tiles
    first_row = (band + in_band % height) % tiles * BLOCK_ROWS
    first_column = in_band // height * BLOCK_OUT

    rank, is_rank = ranks_of_depth(0, RANK)
    lora_a += rank[:, None] * in_features
    acc = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    s = tl.zeros((BLOCK_ROWS, depth_of(RANK)), tl.float32)
    for first in range(0, in_features, BLOCK_IN):
        k = (first + tl.arange(0, BLOCK_IN))[None, :]
        x_tile = x.load([group * rows + first_row, first])
        weight_tile = weight.load([first_column, first])
        a_tile = tl.load(lora_a + k, mask=is_rank[:, None] & (k < in_features), other=0.0)
        acc = tl.dot(x_tile, tl.trans(weight_tile), acc)
        s = tl.dot(x_tile, tl.trans(a_tile), s)

    column = (first_column + tl.arange(0, BLOCK_OUT)).to(INDEX)
    seed, coeff = tl.load(seeds + group), tl.load(coeffs + group)
    b = load_b(lora_b, column, out_features, 0, RANK)
    if DISTRIBUTION == "outer":
        acc = dot(s * scaling, depth_first(b, RANK), acc)
        v = noise_by_element(seed, stream, out_features + rank, "rademacher")
        u = noise_run(seed, stream, first_column.to(tl.int64), BLOCK_OUT, 4, "rademacher")
        turn = tl.sum(tl.where(is_rank[None, :], s * v[None, :], 0.0), axis=1)
        turn = tl.where(coeff != 0.0, coeff * turn, 0.0) * scaling
        acc = tl.fma(turn[:, None], u[None, :], acc)
    else:
        z = tl.zeros((BLOCK_OUT, width_of(RANK)), tl.float32)
        if coeff != 0.0:
            z = noise_of_b(seed, stream, column, 0, RANK, DISTRIBUTION)
        acc = dot(s * scaling, perturbed(b, coeff, z, RANK), acc)
    if bias is not None:
        acc += tl.load(bias + column, mask=column < out_features, other=0.0).to(tl.float32)[None, :]
    row = first_row + tl.arange(0, BLOCK_ROWS)
    inside = (row < rows)[:, None] & (column < out_features)[None, :]
    out += (rows.to(tl.int64) * group + row)[:, None] * out_features + column[None, :]
    tl.store(out, acc.to(out.dtype.element_ty), mask=inside)


def _block_out(row_tiles: int, out_features: int) -> int:
    return 256 if row_tiles * triton.cdiv(out_features, 256) >= FEWEST_PROGRAMS else 128


def fused_tiles(rows: int, groups: int, out_features: int) -> tuple[int, int]:
    """Tiles of (b): of all groups' rows, and of columns."""
    row_tiles = groups * triton.cdiv(rows // groups, BLOCK_ROWS)
    return row_tiles, triton.cdiv(out_features, _block_out(row_tiles, out_features))


def added_operations(
    rows: int, groups: int, in_features: int, out_features: int, rank: int
) -> tuple[float, float]:
    """What (b) and (a) add to the bare linear by the model, in operations of the matrix units."""
    row_tiles, column_tiles = fused_tiles(rows, groups, out_features)
    linear = 2 * rows * in_features * out_features
    padded = 2 * row_tiles * BLOCK_ROWS * in_features * out_features
    shrink = 2 * rows * in_features * depth_of(rank) * column_tiles
    expand = 6 * 2 * rows * out_features * depth_of(rank)
    noise = row_tiles * out_features * rank * INSTRUCTIONS_PER_NOISE * OPERATIONS_PER_INSTRUCTION
    fused = (1 + LEAD_OF_LIBRARY) * padded - linear + shrink + expand + noise
    apart = 2 * rows * (in_features + 2 * out_features) * OPERATIONS_PER_BYTE
    return fused, apart


def fuses(rows: int, groups: int, in_features: int, out_features: int, rank: int) -> bool:
    """Whether (b) should be faster than (a), for 16-bit x, weight and lora_a.

    With these constants the answer is yes for outputs that are narrow for their input, such as the keys and
    values of grouped-query attention, with enough rows to fill the GPU.
    """
    if rank > LARGEST_FUSED_RANK or rows < groups:
        return False
    row_tiles, column_tiles = fused_tiles(rows, groups, out_features)
    if row_tiles * column_tiles < FEWEST_PROGRAMS:
        return False
    fused, apart = added_operations(rows, groups, in_features, out_features, rank)
    return fused < CLEAR_WIN * apart


def _describable(matrix: torch.Tensor) -> bool:
    """Whether the hardware can copy tiles of a 16-bit matrix by a descriptor."""
    stride = row_stride(matrix)
    if stride is None or stride < matrix.shape[-1]:
        return False
    return stride % 8 == 0 and matrix.data_ptr() % 16 == 0


def _takes_fused(x: torch.Tensor, weight: torch.Tensor, lora_a: torch.Tensor, groups: int) -> bool:
    (out_features, in_features), rank = weight.shape, lora_a.shape[0]
    return (
        x.dtype == lora_a.dtype != torch.float32
        and fuses(math.prod(x.shape[:-1]), groups, in_features, out_features, rank)
        and _describable(x)
        and _describable(weight)
        and cuda_capability_geq(9)  # elsewhere descriptors are only pointers
    )


def fused(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *adapter: Any) -> torch.Tensor:
    """(b) of the checked op: x, weight, lora_a of one 16-bit dtype, x and weight :func:`_describable`."""
    lora_a, lora_b, seeds, coeffs, scaling, stream, distribution = PerturbedAdapter(*adapter)
    (out_features, in_features), rank, groups = weight.shape, lora_a.shape[0], seeds.numel()
    rows = math.prod(x.shape[:-1])
    tiles = triton.cdiv(rows // groups, BLOCK_ROWS) * groups
    block_out = _block_out(tiles, out_features)
    x, x_stride = with_row_stride(x)
    out = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    linear_kernel[(tiles * triton.cdiv(out_features, block_out),)](
        TensorDescriptor(x, [rows, in_features], [x_stride, 1], [BLOCK_ROWS, BLOCK_IN]),
        TensorDescriptor.from_tensor(weight, [block_out, BLOCK_IN]),
        bias if bias is None else bias.contiguous(),
        lora_a.contiguous(),
        lora_b.contiguous(),
        seeds.contiguous(),
        coeffs.contiguous(),
        out,
        rows // groups,
        in_features,
        out_features,
        groups,
        scaling,
        stream,
        rank,
        distribution,
        index_type(lora_b),
        BLOCK_ROWS,
        block_out,
        BLOCK_IN,
        num_warps=8,
        num_stages=3,
    )
    return out


def mp_lora_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *adapter: Any
) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.mp_lora_linear` on a GPU; `adapter` as in :class:`PerturbedAdapter`."""
    perturbed = PerturbedAdapter(*adapter)
    check_mp_lora_linear(x, weight, bias, perturbed)
    check_outer("mp_lora_linear", "lora_b", perturbed.lora_b.shape, perturbed.distribution)
    if _takes_fused(x, weight, perturbed.lora_a, perturbed.seeds.numel()):
        return fused(x, weight, bias, *perturbed)
    out = F.linear(x, weight, bias)
    return run(out, x, perturbed, out)
