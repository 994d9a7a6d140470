"""The two kernels of mp_lora: s = x A^T into a float32 scratch, then base + scaling * s W^T, W = B + coeff z.

What it costs, for M rows of 16-bit storage, decides the shape of both kernels:

    bytes     2 M in for x, 4 M out for base and result, each once; s and B come from the cache. With rank 16
              this takes longer than all that follows, as long as many rows share their noise.
    products  x A^T and s W^T with float32 accuracy: three and six bfloat16 products, a few hundredths of the
              linear itself.
    noise     r * out values whenever a B is made, 54 instructions per Gaussian value on sm_90. An H100 issues
              those of 2.4 values in the time in which it moves the base and the result of 3.5 elements.

So a program of `expand_kernel` draws the noise of a [BLOCK_OUT, r] piece of B once and multiplies many rows
by the W it makes of it: those of group g and those of g + G / 2, which in a two-sided estimator have the same
direction. That halves the noise where it weighs most, with many groups of few rows. A clean group, with
coefficient 0, draws none. With few rows, `shrink_kernel` splits the columns of x to fill the GPU, and
`expand_kernel` sums the parts in their order.

Tiles follow from the shape alone, never from a timing: all runs give the same bits, and nothing is timed
inside the capture of a CUDA graph.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops.mp_lora import PerturbedAdapter
from mobizo_kernels.triton.matrix import (
    chunks_of,
    depth_of,
    dot,
    load_b,
    noise_of_b,
    perturbed,
    ranks_of_depth,
    width_of,
)
from mobizo_kernels.triton.signs import SIGN_BLOCK, calls_for, sign_calls, store_signs
from mobizo_kernels.triton.tensors import all_registers

# Programs that keep a GPU of 108 to 304 multiprocessors busy: streams of x, and tiles of results. On an H200,
# 512 programs of two tiles in flight make the result of 4096 x 2048 in 16 us, 1024 of one tile in 22.
SHRINK_PROGRAMS = 128
EXPAND_PROGRAMS = 512


@triton.jit(do_not_specialize=["rows", "groups", "out_features", "stream"])
def shrink_kernel(
    x,
    lora_a,
    shrunk,
    signs,
    seeds,
    rows,
    in_features,
    x_stride,
    groups,
    out_features,
    stream: tl.int64,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """shrunk[i] = x A^T over part i of the columns: float32 [SPLITS, rows, CHUNKS * DEPTH].

    And the signs of every group for directions "outer", int32 [groups, words], where `signs` is given.
    """
    DEPTH: tl.constexpr = depth_of(RANK)
    CHUNKS: tl.constexpr = chunks_of(RANK)
    chunk = tl.program_id(0) % CHUNKS
    row = tl.program_id(0) // CHUNKS * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    split = tl.program_id(1)
    if signs is not None:
        calls = sign_calls(out_features, RANK)
        programs = tl.num_programs(0) * SPLITS
        blocks = tl.cdiv(calls, SIGN_BLOCK)
        for piece in range(tl.program_id(0) * SPLITS + split, groups * blocks, programs):
            group = piece // blocks
            words = signs + group.to(tl.int64) * calls * 4
            store_signs(words, tl.load(seeds + group), stream, calls, piece % blocks, blocks)
    is_row = (row < rows)[:, None]
    rank, is_rank = ranks_of_depth(chunk, RANK)
    x += row.to(tl.int64)[:, None] * x_stride
    lora_a += rank.to(tl.int64)[:, None] * in_features
    span = tl.cdiv(tl.cdiv(in_features, BLOCK_IN), SPLITS) * BLOCK_IN
    acc = tl.zeros((BLOCK_ROWS, DEPTH), tl.float32)
    for first in range(split * span, min((split + 1) * span, in_features), BLOCK_IN):
        column = (first + tl.arange(0, BLOCK_IN))[None, :]
        x_tile = tl.load(x + column, mask=is_row & (column < in_features), other=0.0)
        a_tile = tl.load(lora_a + column, mask=is_rank[:, None] & (column < in_features), other=0.0)
        acc = dot(x_tile, tl.trans(a_tile), acc)
    shrunk += (split.to(tl.int64) * rows + row)[:, None] * (CHUNKS * DEPTH)
    tl.store(shrunk + (chunk * DEPTH + tl.arange(0, DEPTH))[None, :], acc, mask=is_row)


@triton.jit(do_not_specialize=["rows", "groups", "parts", "stream"])
def expand_kernel(
    base,
    shrunk,
    lora_b,
    seeds,
    coeffs,
    out,
    rows,
    out_features,
    groups,
    parts,
    base_stride,
    out_stride,
    scaling,
    stream: tl.int64,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """out = base + scaling * s W^T for BLOCK_OUT columns and one of `parts` parts of the rows of two groups.

    `rows` are those of a group. Up to 64 ranks W is made once for all of them; beyond, each tile of rows
    makes it anew, in chunks.
    """
    DEPTH: tl.constexpr = depth_of(RANK)
    CHUNKS: tl.constexpr = chunks_of(RANK)
    column_tiles = tl.cdiv(out_features, BLOCK_OUT)
    column = (tl.program_id(0) % column_tiles * BLOCK_OUT + tl.arange(0, BLOCK_OUT)).to(INDEX)
    part = tl.program_id(0) // column_tiles % parts
    pair = tl.program_id(0) // column_tiles // parts
    tiles = tl.cdiv(tl.cdiv(rows, BLOCK_ROWS), parts)
    place = tl.arange(0, DEPTH)[None, :]
    z = tl.zeros((BLOCK_OUT, width_of(RANK)), tl.float32)
    for group in range(pair, groups, tl.cdiv(groups, 2)):
        seed, coeff = tl.load(seeds + group), tl.load(coeffs + group)
        if CHUNKS == 1:
            is_drawn = (group > pair) & (seed == tl.load(seeds + pair)) & (tl.load(coeffs + pair) != 0.0)
            if (coeff != 0.0) & (not is_drawn):
                z = noise_of_b(seed, stream, column, 0, RANK, DISTRIBUTION)
            w = perturbed(load_b(lora_b, column, out_features, 0, RANK), coeff, z, RANK)
        for tile in range(part * tiles, (part + 1) * tiles):
            row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            is_row = (row < rows)[:, None]
            row = (rows.to(tl.int64) * group + row)[:, None]
            inside = is_row & (column < out_features)[None, :]
            old = tl.load(base + row * base_stride + column[None, :], mask=inside, other=0.0)
            delta = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
            for chunk in range(CHUNKS):
                if CHUNKS > 1:
                    z = noise_of_b(seed, stream, column, chunk, RANK, DISTRIBUTION)
                    w = perturbed(load_b(lora_b, column, out_features, chunk, RANK), coeff, z, RANK)
                s_tile = shrunk + row * (CHUNKS * DEPTH) + chunk * DEPTH + place
                s = tl.load(s_tile, mask=is_row, other=0.0)
                for _ in tl.static_range(1, SPLITS):
                    s_tile += groups.to(tl.int64) * rows * (CHUNKS * DEPTH)
                    s += tl.load(s_tile, mask=is_row, other=0.0)
                delta = dot(s, w, delta)
            value = tl.fma(delta, tl.zeros_like(delta) + scaling, old.to(tl.float32))
            tl.store(out + row * out_stride + column[None, :], value.to(old.dtype), mask=inside)


def row_stride(tensor: torch.Tensor) -> int | None:
    """Elements from row to row if the leading sizes are one and the last has unit stride, else None."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        return None
    stride, rows = tensor.shape[-1], 1
    if tensor.is_contiguous():
        return stride
    for size, step in zip(reversed(tensor.shape[:-1]), reversed(tensor.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if rows == 1:
            stride = step
        elif step != stride * rows:
            return None
        rows *= size
    return stride


def with_row_stride(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The tensor, or a contiguous copy where it has no row stride, and the row stride."""
    stride = row_stride(tensor)
    return (tensor, stride) if stride is not None else (tensor.contiguous(), tensor.shape[-1])


def index_type(lora_b: torch.Tensor) -> tl.dtype:
    """What numbers the elements of B."""
    return tl.int32 if lora_b.numel() < 2**31 else tl.int64


def block_rows_of(rows: int, rank: int) -> int:
    """Rows of a tile. It, its columns and its warps are chosen to compile without spills on all targets."""
    return min(max(triton.next_power_of_2(rows), 16 if chunks_of(rank) == 1 else 32), 64)


def block_out_of(rank: int) -> int:
    """Columns of a tile of the result."""
    return 32 if width_of(rank) > 32 else 64


def shrink_splits(rows: int, in_features: int, rank: int) -> int:
    """Parts of the columns of x that `shrink_kernel` sums on their own."""
    row_programs = triton.cdiv(rows, block_rows_of(rows // 32, rank)) * chunks_of(rank)
    wanted = triton.next_power_of_2(triton.cdiv(SHRINK_PROGRAMS, row_programs))
    most = 4 if rank <= 16 else 1  # as many as `expand_kernel` has registers for
    return min(wanted, most, triton.next_power_of_2(in_features // 512 + 1))


def expand_parts(rows: int, groups: int, out_features: int, rank: int) -> int:
    """Parts of the `rows` of a group; `expand_kernel` draws the noise of two groups anew for each of them."""
    programs = triton.cdiv(out_features, block_out_of(rank)) * triton.cdiv(groups, 2)
    return min(triton.cdiv(rows, block_rows_of(rows, rank)), triton.cdiv(EXPAND_PROGRAMS, programs))


# Tiles are looked up: on the host, functions of Triton's compile time take longer than a launch.
@lru_cache(maxsize=1024)
def shrink_tiles(rows: int, in_features: int, rank: int, is_split: bool) -> tuple[int, int, int, int, int]:
    """Rows and columns of a tile, parts of the columns, chunks of the ranks, and padded ranks of them all."""
    block_in = (64 if is_split else 128) // (2 if width_of(rank) > 16 else 1)
    splits, chunks = shrink_splits(rows, in_features, rank), chunks_of(rank)
    return block_rows_of(rows // 32, rank), block_in, splits, chunks, chunks * depth_of(rank)


@lru_cache(maxsize=1024)
def expand_tiles(rows: int, groups: int, out_features: int, rank: int) -> tuple[int, int, int, int, int]:
    """Rows and columns of a tile, parts of the `rows` of a group, programs, and tiles in flight."""
    block_out, parts = block_out_of(rank), expand_parts(rows, groups, out_features, rank)
    programs = triton.cdiv(out_features, block_out) * triton.cdiv(groups, 2) * parts
    stages = 2 if chunks_of(rank) == 1 else 1  # beyond, a second tile would cost registers
    return block_rows_of(rows, rank), block_out, parts, programs, stages


def shrink(x: torch.Tensor, adapter: PerturbedAdapter) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x A^T: float32 [parts, rows, padded rank], to be summed over the parts. With directions "outer" their
    signs, too: int32 [groups, words].
    """
    lora_a, lora_b, seeds, _, _, stream, distribution = adapter
    out_features, groups, signs = lora_b.shape[0], seeds.numel(), None
    x, x_stride = with_row_stride(x)
    rank, in_features = lora_a.shape
    rows = math.prod(x.shape[:-1])
    is_split = x.dtype == torch.float32 or (x.dtype == torch.float16 and lora_a.dtype != torch.float16)
    block_rows, block_in, splits, chunks, padded = shrink_tiles(rows, in_features, rank, is_split)
    shrunk = torch.empty((splits, rows, padded), dtype=torch.float32, device=x.device)
    if distribution == "outer":
        words = 4 * calls_for(out_features, rank)
        signs = torch.empty((groups, words), dtype=torch.int32, device=x.device)
    shrink_kernel[(triton.cdiv(rows, block_rows) * chunks, splits)](
        x,
        lora_a.contiguous(),
        shrunk,
        signs,
        seeds.contiguous(),
        rows,
        in_features,
        x_stride,
        groups,
        out_features,
        stream,
        rank,
        splits,
        block_rows,
        block_in,
        num_warps=8 if rank > 32 else 4,
        num_stages=3,
        **all_registers(),
    )
    return shrunk, signs


def expand(base: torch.Tensor, shrunk: torch.Tensor, adapter: PerturbedAdapter, out: torch.Tensor) -> None:
    """out = base + scaling * s W^T, s from :func:`shrink`. `out` has a row stride and may be `base`."""
    _, lora_b, seeds, coeffs, scaling, stream, distribution = adapter
    base, base_stride = with_row_stride(base)
    out_features, rank = lora_b.shape
    groups = seeds.numel()
    rows = shrunk.shape[1] // groups
    block_rows, block_out, parts, programs, stages = expand_tiles(rows, groups, out_features, rank)
    expand_kernel[(programs,)](
        base,
        shrunk,
        lora_b.contiguous(),
        seeds.contiguous(),
        coeffs.contiguous(),
        out,
        rows,
        out_features,
        groups,
        parts,
        base_stride,
        row_stride(out),
        scaling,
        stream,
        rank,
        shrunk.shape[0],
        distribution,
        index_type(lora_b),
        block_rows,
        block_out,
        num_warps=8 if rank > 16 else 4,
        num_stages=stages,
        **all_registers(),
    )
