"""The second kernel of mp_lora with directions "outer": base + scaling * (s B^T + c_g (s . v_g) u_g^T).

A direction u v^T needs no B of its own: the product with the B that all groups share is made for tiles of
rows of any groups, and what a group adds is a dot product of r terms for each row and a signed sum for each
value of the result. The signs lie in a scratch that `shrink_kernel` has drawn, a row of words for each group.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops.mp_lora import PerturbedAdapter
from mobizo_kernels.triton.matrix import chunks_of, depth_first, depth_of, dot, load_b, ranks_of_depth
from mobizo_kernels.triton.philox import flip_sign, signs_of_bits
from mobizo_kernels.triton.shrink_expand import (
    EXPAND_PROGRAMS,
    block_rows_of,
    index_type,
    row_stride,
    with_row_stride,
)
from mobizo_kernels.triton.signs import bits_at, sign_calls
from mobizo_kernels.triton.tensors import all_registers


@triton.jit(do_not_specialize=["rows", "group_rows", "parts"])
def expand_outer_kernel(
    base,
    shrunk,
    lora_b,
    signs,
    coeffs,
    out,
    rows,
    group_rows,
    out_features,
    parts,
    base_stride,
    out_stride,
    scaling,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """BLOCK_OUT columns, 32 or 64, and one of `parts` parts of all rows; `group_rows` of them are a group."""
    DEPTH: tl.constexpr = depth_of(RANK)
    CHUNKS: tl.constexpr = chunks_of(RANK)
    column_tiles = tl.cdiv(out_features, BLOCK_OUT)
    first_column = tl.program_id(0) % column_tiles * BLOCK_OUT
    place = tl.arange(0, BLOCK_OUT)
    column = (first_column + place).to(INDEX)
    part = tl.program_id(0) // column_tiles
    tiles = tl.cdiv(tl.cdiv(rows, BLOCK_ROWS), parts)
    words = sign_calls(out_features, RANK) * 4
    if CHUNKS == 1:
        w = depth_first(load_b(lora_b, column, out_features, 0, RANK), RANK)
    for tile in range(part * tiles, (part + 1) * tiles):
        row = tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        is_row = (row < rows)[:, None]
        group = tl.minimum(row, rows - 1) // group_rows
        row = row.to(tl.int64)[:, None]
        inside = is_row & (column < out_features)[None, :]
        old = tl.load(base + row * base_stride + column[None, :], mask=inside, other=0.0)
        bits = signs + group.to(tl.int64) * words
        delta = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
        turn = tl.zeros((BLOCK_ROWS,), tl.float32)
        for chunk in range(CHUNKS):
            if CHUNKS > 1:
                w = depth_first(load_b(lora_b, column, out_features, chunk, RANK), RANK)
            s_tile = shrunk + row * (CHUNKS * DEPTH) + chunk * DEPTH + tl.arange(0, DEPTH)[None, :]
            s = tl.load(s_tile, mask=is_row, other=0.0)
            for _ in tl.static_range(1, SPLITS):
                s_tile += rows.to(tl.int64) * (CHUNKS * DEPTH)
                s += tl.load(s_tile, mask=is_row, other=0.0)
            delta = dot(s, w, delta)
            rank, is_rank = ranks_of_depth(chunk, RANK)
            bit = (out_features + tl.minimum(rank, RANK - 1)).to(tl.uint32)[None, :]
            v = signs_of_bits(bits_at(bits[:, None], bit), tl.zeros_like(bit))
            turn += tl.sum(tl.where(is_rank[None, :], s * v, 0.0), axis=1)
        coeff = tl.load(coeffs + group)
        turn = tl.where(coeff != 0.0, coeff * turn, 0.0)[:, None]
        u = tl.load(bits + first_column // 32).to(tl.uint32, bitcast=True)[:, None]
        if BLOCK_OUT > 32:
            behind = tl.load(bits + first_column // 32 + 1).to(tl.uint32, bitcast=True)[:, None]
            u = tl.where((place < 32)[None, :], u, behind)
        delta += flip_sign(turn, u << (31 - (place & 31)).to(tl.uint32)[None, :])
        value = tl.fma(delta, tl.zeros_like(delta) + scaling, old.to(tl.float32))
        tl.store(out + row * out_stride + column[None, :], value.to(old.dtype), mask=inside)


@lru_cache(maxsize=1024)
def expand_outer_tiles(rows: int, out_features: int, rank: int) -> tuple[int, int, int, int, int]:
    """Rows and columns of a tile, parts of the `rows` of all groups, programs, and tiles in flight."""
    block_rows, block_out = block_rows_of(rows, rank), 32 if rank > 32 else 64  # no target spills then
    columns = triton.cdiv(out_features, block_out)
    parts = min(triton.cdiv(rows, block_rows), triton.cdiv(EXPAND_PROGRAMS, columns))
    return block_rows, block_out, parts, columns * parts, 2 if chunks_of(rank) == 1 else 1


def expand_outer(
    base: torch.Tensor,
    shrunk: torch.Tensor,
    signs: torch.Tensor,
    adapter: PerturbedAdapter,
    out: torch.Tensor,
) -> None:
    """The adapter's result from :func:`shrink` and the signs. `out` has a row stride and may be `base`."""
    _, lora_b, seeds, coeffs, scaling, *_ = adapter
    base, base_stride = with_row_stride(base)
    (out_features, rank), rows = lora_b.shape, shrunk.shape[1]
    block_rows, block_out, parts, programs, stages = expand_outer_tiles(rows, out_features, rank)
    expand_outer_kernel[(programs,)](
        base,
        shrunk,
        lora_b.contiguous(),
        signs,
        coeffs.contiguous(),
        out,
        rows,
        rows // seeds.numel(),
        out_features,
        parts,
        base_stride,
        row_stride(out),
        scaling,
        rank,
        shrunk.shape[0],
        index_type(lora_b),
        block_rows,
        block_out,
        num_warps=8 if rank > 16 else 4,
        num_stages=stages,
        **all_registers(),
    )
