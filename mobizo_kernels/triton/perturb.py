"""perturb_ and foreach_perturb_ on a GPU: one pass over the parameters, one launch for all of a dtype."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops._checks import check, check_device, check_directions, check_storage_dtype
from mobizo_kernels.triton.philox import noise_run
from mobizo_kernels.triton.tensors import NOISE_BLOCKS, check_no_overlap, contiguous_update, noise_launch

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _update(
    param,
    first,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    decay,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    offset = tl.arange(0, BLOCK)
    inside = offset < numel - first
    block = param + first + offset
    stored = tl.load(block, mask=inside, other=0.0) if MASKED else tl.load(block)
    old = stored.to(tl.float32)
    value = old * decay
    for i in range(count):
        z = noise_run(tl.load(seeds + i), stream, first, BLOCK, VECTOR, DISTRIBUTION)
        value = tl.fma(tl.load(coeffs + i), z, value)
    rounded = value.to(stored.dtype)
    change = rounded.to(tl.float32) - old
    if MASKED:
        tl.store(block, rounded, mask=inside)
        change = tl.where(inside, change, 0.0)
    else:
        tl.store(block, rounded)
    return change


@triton.jit
def update_block(
    param,
    first,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """Updates elements first .. first + BLOCK - 1 of `param`; returns the stored values' change, float32.

    A masked access is as wide as the mask is known to be uniform: all blocks but the last do without a mask.
    """
    if first + BLOCK <= numel:
        change = _update(
            param, first, numel, seeds, coeffs, count, stream, decay, False, BLOCK, VECTOR, DISTRIBUTION
        )
    else:
        change = _update(
            param, first, numel, seeds, coeffs, count, stream, decay, True, BLOCK, VECTOR, DISTRIBUTION
        )
    return change


@triton.jit(do_not_specialize=["numel", "count", "stream"])
def perturb_kernel(
    param,
    numel,
    seeds,
    coeffs,
    count,
    stream,
    decay,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """param = decay * param + sum_i coeffs[i] * z(seeds[i], stream), a block of elements per program."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    update_block(param, first, numel, seeds, coeffs, count, stream, decay, BLOCK, VECTOR, DISTRIBUTION)


@triton.jit(do_not_specialize=["count"])
def foreach_perturb_kernel(
    owners,
    parameters,
    seeds,
    coeffs,
    count,
    decay,
    DTYPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    """:func:`perturb_kernel` for every parameter of a :func:`_table`; program p updates one of owners[p]."""
    row = parameters + 4 * tl.load(owners + tl.program_id(0))
    param = tl.multiple_of(tl.load(row).to(tl.pointer_type(DTYPE)), ALIGNMENT)
    first = (tl.program_id(0) - tl.load(row + 3)) * BLOCK
    numel, stream = tl.load(row + 1), tl.load(row + 2)
    update_block(param, first, numel, seeds, coeffs, count, stream, decay, BLOCK, VECTOR, DISTRIBUTION)


def check_update(
    op: str, name: str, param: torch.Tensor, seeds: torch.Tensor, coeffs: torch.Tensor, distribution: str
) -> None:
    check_storage_dtype(op, name, param)
    check_directions(op, seeds, coeffs, distribution, param.device)
    check_no_overlap(op, name, param)


def perturb_(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.perturb_` on a GPU."""
    check_update("perturb_", "self", param, seeds, coeffs, distribution)
    if param.numel() > 0:
        with contiguous_update(param) as values:
            grid = (triton.cdiv(values.numel(), NOISE_BLOCKS[distribution]),)
            perturb_kernel[grid](
                values,
                values.numel(),
                seeds.contiguous(),
                coeffs.contiguous(),
                seeds.numel(),
                stream,
                decay,
                **noise_launch(values, distribution),
            )
    return param


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=32)
def _table(
    device: torch.device,
    block: int,
    addresses: tuple[int, ...],
    sizes: tuple[int, ...],
    streams: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """What one launch needs to know of its parameters, on the device, cut into blocks of `block` elements.

    Returns:
        owners, int32 [blocks]: the parameter of each block; parameters, int64 [n, 4]: address, number of
        elements, stream and first block of each.
    """
    message = "the first call with these parameters must come before the capture of a CUDA graph"
    check("foreach_perturb_", not _capturing(device), message)
    blocks = torch.tensor([triton.cdiv(size, block) for size in sizes])
    parameters = (
        torch.tensor([addresses, sizes, streams, (blocks.cumsum(0) - blocks).tolist()]).t().contiguous()
    )
    owners = torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(blocks)
    return owners.to(device), parameters.to(device)


# Tables that a CUDA graph reads for as long as it lives, which nobody can tell.
_captured: set[tuple[torch.Tensor, torch.Tensor]] = set()


def _perturb_all(
    params: list[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    streams: list[int],
    decay: float,
    distribution: str,
) -> None:
    """One launch: contiguous parameters of one dtype, none of them empty."""
    addresses = tuple(param.data_ptr() for param in params)
    sizes = tuple(param.numel() for param in params)
    table = _table(seeds.device, NOISE_BLOCKS[distribution], addresses, sizes, tuple(streams))
    if _capturing(seeds.device):
        _captured.add(table)
    owners, parameters = table
    aligned = all(address % 16 == 0 for address in addresses)
    foreach_perturb_kernel[(owners.numel(),)](
        owners,
        parameters,
        seeds,
        coeffs,
        seeds.numel(),
        decay,
        DTYPE=TRITON_DTYPES[params[0].dtype],
        ALIGNMENT=16 if aligned else params[0].element_size(),
        **noise_launch(params[0], distribution),
    )


def _check_distinct(params: Sequence[torch.Tensor]) -> None:
    """Two programs must not meet in one parameter."""
    occupied: dict[int, int] = {}
    for index, param in enumerate(params):
        first = occupied.setdefault(param.data_ptr(), index) if param.numel() > 0 else index
        if first != index:
            message = (
                f"self must hold each parameter once, got self[{first}] and self[{index}] at one address"
            )
            check("foreach_perturb_", False, message)


def foreach_perturb_(
    params: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    streams: Sequence[int],
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:
    """:func:`mobizo_kernels.ops.foreach_perturb_` on a GPU: one launch for all parameters of a dtype.

    A parameter that is not contiguous takes a launch and two copies of its own. The first call with a set of
    parameters copies a table to the device, which must not happen inside the capture of a CUDA graph.
    """
    message = f"streams must have one entry per parameter ({len(params)}), got {len(streams)}"
    check("foreach_perturb_", len(streams) == len(params), message)
    device = params[0].device if params else seeds.device
    check_directions("foreach_perturb_", seeds, coeffs, distribution, device)
    for index, param in enumerate(params):
        if param.dtype in TRITON_DTYPES and param.device == device and param.is_contiguous():
            continue  # messages for hundreds of parameters take longer to write than the kernel to run
        check_storage_dtype("foreach_perturb_", f"self[{index}]", param)
        check_device("foreach_perturb_", f"self[{index}]", param, device)
        check_no_overlap("foreach_perturb_", f"self[{index}]", param)
    _check_distinct(params)
    seeds, coeffs = seeds.contiguous(), coeffs.contiguous()
    launches: dict[torch.dtype, list[int]] = {}
    for index, param in enumerate(params):
        if not param.is_contiguous():
            perturb_(param, seeds, coeffs, streams[index], decay, distribution)
        elif param.numel() > 0:
            launches.setdefault(param.dtype, []).append(index)
    for indices in launches.values():
        chosen = [params[index] for index in indices]
        _perturb_all(chosen, seeds, coeffs, [streams[index] for index in indices], decay, distribution)
