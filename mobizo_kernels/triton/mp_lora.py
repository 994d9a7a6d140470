"""mp_lora, mp_lora_ and mp_lora.out on a GPU: two launches, and no group's B ever in memory."""

from __future__ import annotations

from typing import Any

import torch

from mobizo_kernels.ops.checks import check_no_gradient
from mobizo_kernels.ops.mp_lora import PerturbedAdapter, check_mp_lora, check_mp_lora_out
from mobizo_kernels.triton.expand_outer import expand_outer
from mobizo_kernels.triton.inplace import announce_changes, check_apart, check_no_overlap, same_elements
from mobizo_kernels.triton.shrink_expand import expand, row_stride, shrink
from mobizo_kernels.triton.signs import check_outer


def run(base: torch.Tensor, x: torch.Tensor, adapter: PerturbedAdapter, out: torch.Tensor) -> torch.Tensor:
    """The checked op into `out`, of any strides, which may be `base`; returns `out`."""
    if out.numel() > 0:
        rows = (
            out if row_stride(out) is not None else torch.empty(out.shape, dtype=out.dtype, device=out.device)
        )
        shrunk, signs = shrink(x, adapter)
        if signs is None:
            expand(base, shrunk, adapter, rows)
        else:
            expand_outer(base, shrunk, signs, adapter, rows)
        if rows is not out:
            out.copy_(rows)
    return out


def _begin_writing(op: str, name: str, written: torch.Tensor, read: dict[str, torch.Tensor]) -> None:
    """After all other checks. What is written may be base or x itself, of which no other row is read then."""
    check_no_overlap(op, name, written)
    check_no_gradient(op, **{name: written}, **read)
    read = {n: t for n, t in read.items() if n not in ("base", "x") or not same_elements(written, t)}
    names = [name, *read]
    check_apart(op, [written], list(read.values()), names.__getitem__)
    announce_changes(op, [written], names.__getitem__)


def mp_lora(base: torch.Tensor, x: torch.Tensor, *adapter: Any) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.mp_lora` on a GPU; `adapter` as in :class:`PerturbedAdapter`."""
    perturbed = PerturbedAdapter(*adapter)
    check_mp_lora("mp_lora", base, x, perturbed)
    check_outer("mp_lora", "lora_b", perturbed.lora_b.shape, perturbed.distribution)
    return run(base, x, perturbed, base.new_empty(base.shape))


def mp_lora_out(base: torch.Tensor, x: torch.Tensor, *adapter: Any, out: torch.Tensor) -> torch.Tensor:
    """:func:`mp_lora` into `out`, of any strides."""
    perturbed = PerturbedAdapter(*adapter)
    check_mp_lora_out(base, x, perturbed, out)
    check_outer("mp_lora", "lora_b", perturbed.lora_b.shape, perturbed.distribution)
    _begin_writing("mp_lora", "out", out, {"base": base, "x": x, **perturbed.tensors()})
    return run(base, x, perturbed, out)


def mp_lora_(base: torch.Tensor, x: torch.Tensor, *adapter: Any) -> torch.Tensor:
    """:func:`mp_lora` in place on `base`, which it returns."""
    perturbed = PerturbedAdapter(*adapter)
    check_mp_lora("mp_lora_", base, x, perturbed)
    check_outer("mp_lora_", "lora_b", perturbed.lora_b.shape, perturbed.distribution)
    _begin_writing("mp_lora_", "base", base, {"x": x, **perturbed.tensors()})
    return run(base, x, perturbed, base)
