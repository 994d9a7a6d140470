"""noise on a GPU: a direction, materialised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops.checks import (
    check,
    check_device,
    check_no_gradient,
    check_storage_dtype,
    dtype_name,
    shape_of,
)
from mobizo_kernels.ops.noise import check_noise
from mobizo_kernels.triton.inplace import announce_changes, check_apart, check_no_overlap
from mobizo_kernels.triton.philox import noise_run
from mobizo_kernels.triton.signs import (
    check_outer,
    distribution_for,
    draw_signs,
    matrix_of,
    outer_run,
    places_of_signs,
)
from mobizo_kernels.triton.tensors import NOISE_BLOCKS, contiguous_update, noise_launch
from mobizo_kernels.triton.update import store_block


@triton.jit(do_not_specialize=["numel", "stream", "rows", "columns"])
def noise_kernel(
    out, numel, seed, stream, signs, rows, columns, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
    RUN: tl.constexpr, DISTRIBUTION: tl.constexpr,
):  # fmt: skip
    """out[e] = z(seed, stream, e), a block of elements per program."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    if DISTRIBUTION == "outer":
        row, column = places_of_signs(first, rows, columns, BLOCK, RUN)
        z = outer_run(signs, row, column, BLOCK, RUN)
    else:
        z = noise_run(tl.load(seed), stream, first, BLOCK, VECTOR, DISTRIBUTION)
    z = z.to(out.dtype.element_ty)
    offset = tl.arange(0, BLOCK)
    inside = offset < tl.minimum(numel - first, BLOCK).to(tl.int32)
    if first + BLOCK <= numel:
        store_block(out + first + offset, z, inside, False)
    else:
        store_block(out + first + offset, z, inside, True)


def _fill(out: torch.Tensor, seed: torch.Tensor, stream: int, distribution: str) -> None:
    """`out` is contiguous."""
    numel, distribution = out.numel(), distribution_for(distribution, out.shape)
    if numel > 0:
        matrix = matrix_of(out.shape) if distribution == "outer" else (0, 0)
        signs = draw_signs(seed, stream, *matrix) if distribution == "outer" else None
        noise_kernel[(triton.cdiv(numel, NOISE_BLOCKS[distribution]),)](
            out, numel, seed, stream, signs, *matrix, **noise_launch([out], distribution, *matrix)
        )


def noise(
    size: Sequence[int],
    seed: torch.Tensor,
    stream: int,
    distribution: str = "gaussian",
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.noise` on the device of `seed`."""
    check_noise(seed, distribution)
    for extent in size:
        check("noise", extent >= 0, f"size must not be negative, got {extent}")
    check_outer("noise", "size", size, distribution)
    out = seed.new_empty(size, dtype=dtype or torch.float32)
    check_storage_dtype("noise", "dtype", out)
    _fill(out, seed, stream, distribution)
    return out


def noise_out(
    size: Sequence[int],
    seed: torch.Tensor,
    stream: int,
    distribution: str = "gaussian",
    *,
    dtype: torch.dtype | None = None,
    out: torch.Tensor,
) -> torch.Tensor:
    """:func:`noise` into `out`, of any strides."""
    check_noise(seed, distribution)
    check_device("noise", "out", out, seed.device)
    check_storage_dtype("noise", "out", out)
    wanted = dtype or torch.float32
    check("noise", out.dtype == wanted, f"out must be {wanted}, got {dtype_name(out)}")
    check("noise", list(out.shape) == list(size), f"out must have shape {list(size)}, got {shape_of(out)}")
    check_outer("noise", "out", out.shape, distribution)
    check_no_overlap("noise", "out", out)
    check_no_gradient("noise", out=out)
    names = ("out", "seed")
    check_apart("noise", [out], [seed], names.__getitem__)
    announce_changes("noise", [out], names.__getitem__)
    with contiguous_update(out) as values:
        _fill(values, seed, stream, distribution)
    return out
