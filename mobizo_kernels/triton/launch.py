"""From the arguments of an update to its launches: checks, the norm, the table of a foreach form."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobizo_kernels.ops.checks import (
    check,
    check_device,
    check_directions,
    check_length,
    check_no_gradient,
    check_one_float,
    check_state,
    check_storage_dtype,
)
from mobizo_kernels.triton.inplace import announce_changes, check_apart, check_no_overlap
from mobizo_kernels.triton.signs import (
    calls_for,
    check_outer,
    distribution_for,
    draw_signs,
    matrix_of,
    sign_grid,
)
from mobizo_kernels.triton.tensors import NOISE_BLOCKS, all_registers, contiguous_update, noise_launch
from mobizo_kernels.triton.update import (
    foreach_signs_kernel,
    foreach_update_kernel,
    sum_kernel,
    update_kernel,
)

SUM_BLOCK = 1024
TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def begin(
    op: str, lists: dict[str, Sequence[Tensor]], seeds: Tensor, coeffs: Tensor,
    numbers: Sequence[Tensor | float], distribution: str, out: Tensor | None = None,
) -> None:  # fmt: skip
    """All checks. What is right costs no message: hundreds of messages would take longer than the kernel.

    `lists` are the parameters and their state by name, one of each where `op` is no foreach; `numbers` are
    those of the op, its learning rate first; `out` is written as well.
    """
    (_, params), *states = lists.items()
    count, device = len(params), params[0].device if params else seeds.device
    check_directions(op, seeds, coeffs, distribution, device)
    rates = {"lr": numbers[0]} if isinstance(numbers[0], Tensor) else {}
    norms = {} if out is None else {"out": out}
    for name, scalar in (rates | norms).items():
        check_one_float(op, name, scalar, device)
    for name, tensors in states:
        check_length(op, name, tensors, params)
    written = [*(tensor for tensors in lists.values() for tensor in tensors), *norms.values()]
    read = {"seeds": seeds, "coeffs": coeffs, **rates}

    def name_of(index: int) -> str:
        named = (f"{n}[{i}]" if op.startswith("foreach_") else n for n in lists for i in range(count))
        return [*named, *norms, *read][index]

    for index, param in enumerate(params):
        if not (param.dtype in TRITON_DTYPES and param.device == device and param.is_contiguous()):
            check_storage_dtype(op, name_of(index), param)
            check_device(op, name_of(index), param, device)
            check_no_overlap(op, name_of(index), param)
        if distribution == "outer":
            check_outer(op, name_of(index), param.shape, distribution)
        for column, (_, tensors) in enumerate(states, 1):
            state = tensors[index]
            plain = state.dtype == torch.float32 and state.device == device and state.is_contiguous()
            if not (plain and state.shape == param.shape):
                check_state(op, name_of(column * count + index), state, param)
                check_no_overlap(op, name_of(column * count + index), state)
    if torch.is_grad_enabled():
        for index, tensor in enumerate((*written, *read.values())):
            check_no_gradient(op, **{name_of(index): tensor})
    check_apart(op, written, list(read.values()), name_of)
    announce_changes(op, written, name_of)


def launch(
    step: Any, tensors: Sequence[Tensor], seeds: Tensor, coeffs: Tensor, stream: int,
    numbers: Sequence[Tensor | float], distribution: str, squares: Tensor | None, **options: int,
) -> None:  # fmt: skip
    """One step of a parameter and its state, of any strides; `squares`, one of each block, are for a norm."""
    numel, seeds = tensors[0].numel(), seeds.contiguous()
    distribution = distribution_for(distribution, tensors[0].shape)
    signs, matrix = None, (0, 0)
    if distribution == "outer":
        matrix = matrix_of(tensors[0].shape)
        signs = draw_signs(seeds, stream, *matrix)
    with ExitStack() as stack:
        values = tuple(stack.enter_context(contiguous_update(tensor)) for tensor in tensors)
        update_kernel[(triton.cdiv(numel, NOISE_BLOCKS[distribution]),)](
            values, numel, squares, seeds, coeffs.contiguous(), seeds.numel(), stream, signs, *matrix,
            tuple(numbers), step, **noise_launch(values, distribution, *matrix), **options,
        )  # fmt: skip


def store_norm(squares: Tensor, norm: Tensor) -> None:
    """norm[0] = sqrt(squares.sum()): sums in a fixed order, by as many programs as there is work for."""
    while (count := squares.numel()) > SUM_BLOCK:
        sums = squares.new_empty(triton.cdiv(count, SUM_BLOCK))
        sum_kernel[(sums.numel(),)](squares, count, sums, SUM_BLOCK, ROOT=False)
        squares = sums
    sum_kernel[(1,)](squares, count, norm, SUM_BLOCK, ROOT=True)


def update(
    op: str, step: Any, written: dict[str, Tensor], seeds: Tensor, coeffs: Tensor, stream: int,
    numbers: Sequence[Tensor | float], distribution: str, out: Tensor | None,
) -> Tensor:  # fmt: skip
    """Check, and update one parameter; the norm of its change, float32 [1], in `out` where that is given."""
    begin(op, {name: [tensor] for name, tensor in written.items()}, seeds, coeffs, numbers, distribution, out)
    param, *_ = tensors = list(written.values())
    norm = param.new_empty(1, dtype=torch.float32) if out is None else out
    blocks = triton.cdiv(param.numel(), NOISE_BLOCKS[distribution_for(distribution, param.shape)])
    squares = param.new_empty(blocks, dtype=torch.float64)
    launch(step, tensors, seeds, coeffs, stream, numbers, distribution, squares, **all_registers())
    store_norm(squares, norm)
    return norm


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Table(NamedTuple):
    """What one launch needs to know of its parameters, cut into blocks.

    Attributes:
        owners: the parameter of each block, int32 [blocks].
        params: the columns of update.py, int64 [n, 6 + tensors].
        words: of the signs of one seed for all parameters, for directions "outer", else 0.
        calls: Philox calls for the signs of the parameter that has most.
    """

    owners: Tensor
    params: Tensor
    words: int
    calls: int


@lru_cache(maxsize=32)
def _table(
    op: str, device: torch.device, block: int, addresses: tuple[tuple[int, ...], ...],
    sizes: tuple[int, ...], streams: tuple[int, ...], matrices: tuple[tuple[int, int], ...],
) -> Table:  # fmt: skip
    """On the device, for blocks of `block` elements; `matrices` are rows and columns, or nothing."""
    message = "the first call with these parameters must come before the capture of a CUDA graph"
    check(op, not _capturing(device), message)
    blocks = torch.tensor([triton.cdiv(size, block) for size in sizes], device="cpu")
    calls = [calls_for(*matrix) for matrix in matrices] or [0] * len(sizes)
    rows, widths = zip(*matrices, strict=True) if matrices else (calls, calls)
    signs = [4 * before for before in accumulate(calls, initial=0)]
    firsts = (blocks.cumsum(0) - blocks).tolist()
    columns = [sizes, streams, firsts, rows, widths, signs[:-1], *addresses]
    table = torch.tensor(columns, device="cpu").t().contiguous()
    owners = torch.arange(len(sizes), dtype=torch.int32, device="cpu").repeat_interleave(blocks)
    return Table(owners.to(device), table.to(device), signs[-1], max(calls))


# Tables that a CUDA graph reads for as long as it lives, which nobody can tell.
_captured: set[Table] = set()


def update_each(
    op: str, step: Any, lists: dict[str, Sequence[Tensor]], seeds: Tensor, coeffs: Tensor,
    streams: Sequence[int], numbers: Sequence[Tensor | float], distribution: str, **options: int,
) -> None:  # fmt: skip
    """Check, and launch a step once for all parameters of a dtype: `lists` are they and their state, by name.
    With directions "outer" those of two and more dimensions and the others are launched apart.

    A parameter that is not contiguous, or whose state is not, takes a launch of its own.
    """
    params, *states = lists.values()
    check_length(op, "streams", streams, params)
    begin(op, lists, seeds, coeffs, numbers, distribution)
    seeds, coeffs = seeds.contiguous(), coeffs.contiguous()
    together: dict[tuple[torch.dtype, str], list[int]] = {}
    for index, param in enumerate(params):
        tensors = [param, *(state[index] for state in states)]
        if not all(tensor.is_contiguous() for tensor in tensors):
            launch(step, tensors, seeds, coeffs, streams[index], numbers, distribution, None, **options)
        elif param.numel() > 0:
            kind = param.dtype, distribution_for(distribution, param.shape)
            together.setdefault(kind, []).append(index)
    for (dtype, drawn), indices in together.items():
        addresses = tuple(tuple(column[i].data_ptr() for i in indices) for column in lists.values())
        sizes, chosen = tuple(params[i].numel() for i in indices), tuple(streams[i] for i in indices)
        matrices = tuple(matrix_of(params[i].shape) for i in indices) if drawn == "outer" else ()
        device = params[0].device
        table = _table(op, device, NOISE_BLOCKS[drawn], addresses, sizes, chosen, matrices)
        if _capturing(device):
            _captured.add(table)
        signs = None
        if drawn == "outer":
            signs = torch.empty(table.words * seeds.numel(), dtype=torch.int32, device=device)
            if signs.numel() > 0:
                grid = sign_grid(len(indices) * seeds.numel(), table.calls)
                foreach_signs_kernel[grid](signs, table.params, seeds, seeds.numel(), len(states))
        aligned = all(address % 16 == 0 for column in addresses for address in column)
        foreach_update_kernel[(table.owners.numel(),)](
            table.owners, table.params, seeds, coeffs, seeds.numel(), signs, tuple(numbers), step,
            len(states), TRITON_DTYPES[dtype], 16 if aligned else dtype.itemsize, **options,
            **noise_launch([column[indices[0]] for column in lists.values()], drawn, *chain(*matrices)),
        )  # fmt: skip
