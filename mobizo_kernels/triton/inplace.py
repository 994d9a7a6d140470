"""What torch and its users expect of an op that changes its arguments: no memory under two names, every
change made known. csrc/torch/inplace.cpp is the same on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mobizo_kernels.ops.checks import check, shape_of


def _extents(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions that move, in bytes from element to element, smallest first."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return sorted((stride * tensor.element_size(), size) for stride, size in pairs if size > 1)


def _bytes_spanned(tensor: torch.Tensor) -> int:
    """From the first byte of a tensor to behind its last."""
    if tensor.is_contiguous():
        return tensor.nbytes
    return tensor.element_size() + sum(stride * (size - 1) for stride, size in _extents(tensor))


def _disjoint_within(a: torch.Tensor, b: torch.Tensor, offset: int, period: int) -> bool:
    """Whether each keeps to a place of its own in memory taken modulo `period`; b begins at a + offset."""
    reach_a, reach_b = (
        t.element_size() + sum(stride * (size - 1) for stride, size in _extents(t) if stride % period != 0)
        for t in (a, b)
    )
    distance = offset % period
    return reach_a <= distance and reach_b <= period - distance


def may_overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors, neither of which overlaps itself, may share memory. Those that interleave as the
    columns or heads of a fused weight do don't; some that interleave in odder ways are taken to."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    offset = b.data_ptr() - a.data_ptr()
    if offset >= _bytes_spanned(a) or -offset >= _bytes_spanned(b):
        return False
    periods = {stride for t in (a, b) for stride, _ in _extents(t) if stride > 0}
    return not any(_disjoint_within(a, b, offset, period) for period in periods)


def same_elements(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same elements in the same order."""
    if a.data_ptr() != b.data_ptr() or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return all(size < 2 or a.stride(d) == b.stride(d) for d, size in enumerate(a.shape))


def check_no_overlap(op: str, name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor to be written that may hold one memory location twice, as an expanded one does."""
    if tensor.is_contiguous():
        return
    reach = 0  # of all smaller strides together
    for stride, size in _extents(tensor):
        got = f"got shape {shape_of(tensor)} with a stride of {stride // tensor.element_size()}"
        check(op, stride > reach, f"{name} must not overlap itself in memory, {got}")
        reach += stride * (size - 1)


def check_apart(
    op: str, written: Sequence[torch.Tensor], read: Sequence[torch.Tensor], name_of: Callable[[int], str]
) -> None:
    """Refuses a written tensor that shares memory with another, written or read.

    `name_of` an index of `written + read` is called for the message.
    """
    tensors = [*written, *read]
    in_memory = [index for index, tensor in enumerate(tensors) if tensor.numel() > 0 and not tensor.is_meta]
    order = sorted((tensors[index].data_ptr(), index) for index in in_memory)
    for place, (begin, index) in enumerate(order):
        end = begin + _bytes_spanned(tensors[index])
        for other_begin, other in order[place + 1 :]:
            if other_begin >= end:
                break
            first, second = sorted((index, other))
            if first < len(written):
                message = f"{name_of(first)} and {name_of(second)} must not share memory, but they overlap"
                check(op, not may_overlap(tensors[first], tensors[second]), message)


def announce_changes(op: str, tensors: Sequence[torch.Tensor], name_of: Callable[[int], str]) -> None:
    """To be called before tensors are changed: autograd then knows that what it saved of them is gone.

    Refuses, as torch does, a tensor of inference mode outside of it; `name_of` an index is for the message.
    """
    if not torch.is_inference_mode_enabled():
        for index, tensor in enumerate(tensors):
            if tensor.is_inference():
                message = "a tensor made in inference mode can only be changed in inference mode"
                check(op, False, f"{name_of(index)} may not be changed in place: {message}")
    torch.autograd.graph.increment_version(tensors)
