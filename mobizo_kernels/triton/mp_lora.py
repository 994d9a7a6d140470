"""mp_lora, mp_lora_ and mp_lora.out on a GPU: two launches, and no group's B ever in memory."""

from __future__ import annotations

import torch

from mobizo_kernels.ops.checks import (
    check_device,
    check_dtype_of_x,
    check_no_gradient,
    check_shape,
    shape_of,
)
from mobizo_kernels.ops.mp_lora import check_mp_lora
from mobizo_kernels.triton.inplace import announce_changes, check_apart, check_no_overlap, same_elements
from mobizo_kernels.triton.shrink_expand import expand, row_stride, shrink


def run(
    base: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    scaling: float,
    stream: int,
    distribution: str,
    out: torch.Tensor,
) -> torch.Tensor:
    """The checked op into `out`, of any strides, which may be `base`; returns `out`."""
    if out.numel() > 0:
        rows = (
            out if row_stride(out) is not None else torch.empty(out.shape, dtype=out.dtype, device=out.device)
        )
        expand(base, shrink(x, lora_a), lora_b, seeds, coeffs, scaling, stream, distribution, rows)
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


def mp_lora(
    base: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    scaling: float,
    stream: int,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """:func:`mobizo_kernels.ops.mp_lora` on a GPU."""
    check_mp_lora("mp_lora", base, x, lora_a, lora_b, seeds, coeffs, distribution)
    out = base.new_empty(base.shape)
    return run(base, x, lora_a, lora_b, seeds, coeffs, scaling, stream, distribution, out)


def mp_lora_out(
    base: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    scaling: float,
    stream: int,
    distribution: str = "gaussian",
    *,
    out: torch.Tensor,
) -> torch.Tensor:
    """:func:`mp_lora` into `out`, of any strides."""
    check_mp_lora("mp_lora", base, x, lora_a, lora_b, seeds, coeffs, distribution)
    check_device("mp_lora", "out", out, x.device)
    check_dtype_of_x("mp_lora", "out", out, x)
    check_shape("mp_lora", "out", out, base.shape, f"the shape of base, {shape_of(base)}")
    read = {"base": base, "x": x, "lora_a": lora_a, "lora_b": lora_b, "seeds": seeds, "coeffs": coeffs}
    _begin_writing("mp_lora", "out", out, read)
    return run(base, x, lora_a, lora_b, seeds, coeffs, scaling, stream, distribution, out)


def mp_lora_(
    base: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    scaling: float,
    stream: int,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """:func:`mp_lora` in place on `base`, which it returns."""
    check_mp_lora("mp_lora_", base, x, lora_a, lora_b, seeds, coeffs, distribution)
    read = {"x": x, "lora_a": lora_a, "lora_b": lora_b, "seeds": seeds, "coeffs": coeffs}
    _begin_writing("mp_lora_", "base", base, read)
    return run(base, x, lora_a, lora_b, seeds, coeffs, scaling, stream, distribution, base)
