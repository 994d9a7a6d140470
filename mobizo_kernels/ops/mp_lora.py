"""mp_lora: the adapters of many perturbed copies of a batch, with no perturbed copy of LoRA-B anywhere."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from mobizo_kernels.ops.checks import (
    MAX_RANK,
    check,
    check_device,
    check_directions,
    check_dtype_of_x,
    check_no_gradient,
    check_shape,
    check_storage_dtype,
    shape_of,
)
from mobizo_kernels.ops.transforms import check_transforms


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
    """base + scaling * (x A^T)(B + coeffs[g] z(seeds[g]))^T for the rows of each group g.

    MP-LoRA of MobiZO (arXiv 2409.15520): the rows are G equal contiguous blocks, one for each perturbed copy
    of the batch. The directions are made inside the kernel. Sums and the perturbed B are float32 whatever the
    storage types; the result is rounded once. One group with coefficient 0 is plain LoRA. The op is
    differentiable in `base`, `x`, `lora_a`, `lora_b` and `coeffs` by torch.autograd, also twice. Under
    autocast x is cast to the dtype of `base`.

    Args:
        base: [..., out], the output of the frozen linear on x; float32, bfloat16 or float16.
        x: [..., in] of the dtype of `base`; its leading sizes multiply to M rows, M divisible by G.
        lora_a: [r, in], float32, bfloat16 or float16.
        lora_b: [out, r], float32, bfloat16 or float16. Element (n, j) takes noise element n * r + j.
        seeds: int64 [G].
        coeffs: float32 [G], the signed size of each group's perturbation.
        scaling: alpha / rank.
        stream: the stream of the adapted weight, see :func:`mobizo_kernels.ops.parameter_stream`.
        distribution: "gaussian", "rademacher" or "outer".

    Returns:
        New tensor of the shape and dtype of `base`.

    Raises:
        RuntimeError: if a shape, dtype, device, the number of rows or the distribution is wrong, or inside of
            `torch.func.grad`, `jvp` and the like.
    """
    check_transforms("mp_lora", base, x, lora_a, lora_b, coeffs)
    return torch.ops.mobizo.mp_lora(base, x, lora_a, lora_b, seeds, coeffs, scaling, stream, distribution)


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
    """:func:`mp_lora` in place on `base`, which it returns: no second output buffer.

    Where autograd records and an argument requires a gradient, the result is made apart and copied into
    `base`, so that the gradients are those of :func:`mp_lora`.

    Args:
        base: as in :func:`mp_lora`, changed in place. It may be `x` itself, but share no memory with another
            argument nor with a part of `x`.

    Raises:
        RuntimeError: before anything is written, in the cases of :func:`mp_lora`, if `base` shares memory, or
            if it is a leaf that requires a gradient.
    """
    check_transforms("mp_lora_", base, x, lora_a, lora_b, coeffs)
    differentiable = torch.is_grad_enabled() and (
        base.requires_grad
        or x.requires_grad
        or lora_a.requires_grad
        or lora_b.requires_grad
        or coeffs.requires_grad
    )
    if differentiable or torch.compiler.is_compiling():
        # Functionalization refuses custom ops that return an alias, and turns this copy into a new value.
        return base.copy_(mp_lora(base, x, lora_a, lora_b, seeds, coeffs, scaling, stream, distribution))
    return torch.ops.mobizo.mp_lora_(base, x, lora_a, lora_b, seeds, coeffs, scaling, stream, distribution)


def mp_lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    scaling: float,
    stream: int,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """The whole adapted linear: :func:`mp_lora` on top of x W^T + bias, differentiable in all its tensors.

    Args:
        x: [..., in], float32, bfloat16 or float16.
        weight: [out, in] of the dtype of `x`.
        bias: [out] of the dtype of `x`, or None.
        lora_a, lora_b, seeds, coeffs, scaling, stream, distribution: as in :func:`mp_lora`.

    Returns:
        New tensor [..., out] of the dtype of `x`; under autocast of autocast's, to which x, weight and bias
        are cast then.

    Raises:
        RuntimeError: if a shape, dtype, device, the number of rows or the distribution is wrong, or inside of
            `torch.func.grad`, `jvp` and the like.
    """
    tensors = (
        (x, weight, lora_a, lora_b, coeffs) if bias is None else (x, weight, bias, lora_a, lora_b, coeffs)
    )
    check_transforms("mp_lora_linear", *tensors)
    return torch.ops.mobizo.mp_lora_linear(
        x, weight, bias, lora_a, lora_b, seeds, coeffs, scaling, stream, distribution
    )


class PerturbedAdapter(NamedTuple):
    """What the arguments of every mp_lora op end with, in their order: below the ops it travels whole."""

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    seeds: torch.Tensor
    coeffs: torch.Tensor
    scaling: float
    stream: int
    distribution: str = "gaussian"

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"lora_a": self.lora_a, "lora_b": self.lora_b, "seeds": self.seeds, "coeffs": self.coeffs}


def check_adapter(op: str, x: torch.Tensor, out_features: int, adapter: PerturbedAdapter) -> None:
    lora_a, lora_b, seeds = adapter.lora_a, adapter.lora_b, adapter.seeds
    for name, tensor in (("x", x), ("lora_a", lora_a), ("lora_b", lora_b)):
        check_device(op, name, tensor, x.device)
        check_storage_dtype(op, name, tensor)
    check(op, x.dim() >= 1, f"x must have at least one dimension, got shape {shape_of(x)}")
    in_features, rank = x.shape[-1], lora_a.shape[0] if lora_a.dim() > 0 else 0
    check_shape(op, "lora_a", lora_a, (rank, in_features), f"shape (rank, {in_features})")
    check(op, 1 <= rank <= MAX_RANK, f"rank must be from 1 to {MAX_RANK}, got {rank}")
    check_shape(op, "lora_b", lora_b, (out_features, rank), f"shape ({out_features}, {rank})")
    check_directions(op, seeds, adapter.coeffs, adapter.distribution, x.device)
    rows, groups = math.prod(x.shape[:-1]), seeds.shape[0]
    # A symbolic row count stays free: a guard on its divisibility would refuse dynamic batches at export.
    if isinstance(rows, int) and isinstance(groups, int):
        check(op, groups >= 1, f"seeds must name at least one group, got shape {shape_of(seeds)}")
        divisible = groups >= 1 and rows % groups == 0
        check(op, divisible, f"rows of x ({rows}) must be divisible by the number of groups ({groups})")


def check_mp_lora(op: str, base: torch.Tensor, x: torch.Tensor, adapter: PerturbedAdapter) -> None:
    check(op, base.dim() >= 1, f"base must have at least one dimension, got shape {shape_of(base)}")
    check_adapter(op, x, base.shape[-1], adapter)
    check_device(op, "base", base, x.device)
    check_dtype_of_x(op, "base", base, x)
    leading = (*x.shape[:-1], base.shape[-1])
    check_shape(op, "base", base, leading, f"the leading sizes of x, {shape_of(x)}")


def check_mp_lora_out(
    base: torch.Tensor, x: torch.Tensor, adapter: PerturbedAdapter, out: torch.Tensor
) -> None:
    check_mp_lora("mp_lora", base, x, adapter)
    check_device("mp_lora", "out", out, x.device)
    check_dtype_of_x("mp_lora", "out", out, x)
    check_shape("mp_lora", "out", out, base.shape, f"the shape of base, {shape_of(base)}")


def check_mp_lora_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, adapter: PerturbedAdapter
) -> None:
    op = "mp_lora_linear"
    check_device(op, "weight", weight, x.device)
    matches = weight.dim() == 2 and x.dim() >= 1 and weight.shape[1] == x.shape[-1]
    got = f"got {shape_of(weight)} for x of shape {shape_of(x)}"
    check(op, matches, f"weight must have shape (out_features, in_features of x), {got}")
    check_dtype_of_x(op, "weight", weight, x)
    if bias is not None:
        check_device(op, "bias", bias, x.device)
        check_shape(op, "bias", bias, (weight.shape[0],), f"shape ({weight.shape[0]},)")
        check_dtype_of_x(op, "bias", bias, x)
    check_adapter(op, x, weight.shape[0], adapter)


@torch.library.register_fake("mobizo::mp_lora")
def _(base: torch.Tensor, x: torch.Tensor, *adapter: Any) -> torch.Tensor:
    check_mp_lora("mp_lora", base, x, PerturbedAdapter(*adapter))
    return base.new_empty(base.shape)


@torch.library.register_fake("mobizo::mp_lora.out")
def _(base: torch.Tensor, x: torch.Tensor, *adapter: Any, out: torch.Tensor) -> torch.Tensor:
    perturbed = PerturbedAdapter(*adapter)
    check_mp_lora_out(base, x, perturbed, out)
    check_no_gradient("mp_lora", out=out, base=base, x=x, **perturbed.tensors())
    return out


@torch.library.register_fake("mobizo::mp_lora_")
def _(base: torch.Tensor, x: torch.Tensor, *adapter: Any) -> torch.Tensor:
    perturbed = PerturbedAdapter(*adapter)
    check_mp_lora("mp_lora_", base, x, perturbed)
    check_no_gradient("mp_lora_", base=base, x=x, **perturbed.tensors())
    return base


@torch.library.register_fake("mobizo::mp_lora_linear")
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *adapter: Any) -> torch.Tensor:
    check_mp_lora_linear(x, weight, bias, PerturbedAdapter(*adapter))
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
