"""Every parameter of a model in one launch for each dtype: the table that it reads, and who shares it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from mobizo_kernels.ops.checks import (
    check,
    check_device,
    check_directions,
    check_length,
    check_no_gradient,
    check_state,
    check_storage_dtype,
)
from mobizo_kernels.triton.inplace import announce_changes, check_apart, check_no_overlap
from mobizo_kernels.triton.tensors import NOISE_BLOCKS, noise_launch

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

# Columns of a table: number of elements, stream, first block, then the addresses of parameter and state.
ADDRESSES = tl.constexpr(3)


@triton.jit
def table_row(owners, table, TENSORS: tl.constexpr, BLOCK: tl.constexpr):
    """Of this program's block: its parameter's row, first element, number of elements and stream."""
    row = table + (ADDRESSES + TENSORS) * tl.load(owners + tl.program_id(0))
    first = (tl.program_id(0) - tl.load(row + 2)) * BLOCK
    return row, first, tl.load(row), tl.load(row + 1)


@triton.jit
def tensor_in(row, INDEX: tl.constexpr, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Pointer to the parameter, number 0, or to its state, numbers 1 and 2."""
    return tl.multiple_of(tl.load(row + ADDRESSES + INDEX).to(tl.pointer_type(DTYPE)), ALIGNMENT)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=32)
def _table(
    op: str,
    device: torch.device,
    block: int,
    addresses: tuple[tuple[int, ...], ...],
    sizes: tuple[int, ...],
    streams: tuple[int, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """What one launch needs to know of its parameters, on the device, cut into blocks of `block` elements.

    Returns:
        owners, int32 [blocks]: the parameter of each block; table, int64 [n, 3 + tensors]: number of
        elements, stream, first block and addresses of each.
    """
    message = "the first call with these parameters must come before the capture of a CUDA graph"
    check(op, not _capturing(device), message)
    blocks = torch.tensor([triton.cdiv(size, block) for size in sizes], device="cpu")
    columns = [sizes, streams, (blocks.cumsum(0) - blocks).tolist(), *addresses]
    table = torch.tensor(columns, device="cpu").t().contiguous()
    owners = torch.arange(len(sizes), dtype=torch.int32, device="cpu").repeat_interleave(blocks)
    return owners.to(device), table.to(device)


# Tables that a CUDA graph reads for as long as it lives, which nobody can tell.
_captured: set[tuple[torch.Tensor, torch.Tensor]] = set()


def _begin(
    op: str,
    lists: dict[str, Sequence[torch.Tensor]],
    streams: Sequence[int],
    device: torch.device,
    read: dict[str, torch.Tensor],
) -> None:
    """All checks. What is right costs no message: hundreds of messages would take longer than the kernel."""
    (name, params), *states = lists.items()
    for other, entries in (*states, ("streams", streams)):
        check_length(op, other, entries, params)
    for index, param in enumerate(params):
        if not (param.dtype in TRITON_DTYPES and param.device == device and param.is_contiguous()):
            check_storage_dtype(op, f"{name}[{index}]", param)
            check_device(op, f"{name}[{index}]", param, device)
            check_no_overlap(op, f"{name}[{index}]", param)
        for other, tensors in states:
            state = tensors[index]
            plain = state.dtype == torch.float32 and state.device == device and state.is_contiguous()
            if not (plain and state.shape == param.shape):
                check_state(op, f"{other}[{index}]", state, param)
                check_no_overlap(op, f"{other}[{index}]", state)
    written = [tensor for tensors in lists.values() for tensor in tensors]
    count, names = len(params), list(lists)

    def name_of(index: int) -> str:
        if index < len(written):
            return f"{names[index // count]}[{index % count}]"
        return list(read)[index - len(written)]

    if torch.is_grad_enabled():
        for index, tensor in enumerate((*written, *read.values())):
            check_no_gradient(op, **{name_of(index): tensor})
    check_apart(op, written, list(read.values()), name_of)
    announce_changes(op, written, name_of)


def step_of_each(
    op: str,
    kernel: Any,
    lists: dict[str, Sequence[torch.Tensor]],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    streams: Sequence[int],
    numbers: Sequence[torch.Tensor | float],
    distribution: str,
    alone: Callable[[int], object],
) -> None:
    """Check, and launch a kernel once for all parameters of a dtype.

    The kernel takes owners, table, seeds, coeffs, count, `numbers`, DTYPE, ALIGNMENT and what `noise_launch`
    gives.

    Args:
        lists: the parameters, then lists of their state, by their names.
        alone: the step of the i-th parameter, called where it or its state is not contiguous.
    """
    params, *states = lists.values()
    device = params[0].device if params else seeds.device
    check_directions(op, seeds, coeffs, distribution, device)
    read = {"seeds": seeds, "coeffs": coeffs}
    for number in numbers:
        if isinstance(number, torch.Tensor):
            read["lr"] = number
    _begin(op, lists, streams, device, read)
    seeds, coeffs = seeds.contiguous(), coeffs.contiguous()
    launches: dict[torch.dtype, list[int]] = {}
    for index, param in enumerate(params):
        if not all(tensors[index].is_contiguous() for tensors in (params, *states)):
            alone(index)
        elif param.numel() > 0:
            launches.setdefault(param.dtype, []).append(index)
    for dtype, indices in launches.items():
        addresses = tuple(tuple(tensors[i].data_ptr() for i in indices) for tensors in (params, *states))
        sizes = tuple(params[i].numel() for i in indices)
        chosen = tuple(streams[i] for i in indices)
        table = _table(op, device, NOISE_BLOCKS[distribution], addresses, sizes, chosen)
        if _capturing(device):
            _captured.add(table)
        aligned = all(address % 16 == 0 for column in addresses for address in column)
        kernel[(table[0].numel(),)](
            *table,
            seeds,
            coeffs,
            seeds.numel(),
            *numbers,
            DTYPE=TRITON_DTYPES[dtype],
            ALIGNMENT=16 if aligned else dtype.itemsize,
            **noise_launch(params[indices[0]], distribution),
        )
