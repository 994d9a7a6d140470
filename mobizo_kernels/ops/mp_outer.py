"""mp_outer: a linear whose every group of rows sees the weight along a direction "outer" of its own."""

from __future__ import annotations

import math

import torch

from mobizo_kernels.ops.checks import (
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


def mp_outer_(
    base: torch.Tensor,
    x: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    transposed: bool = False,
) -> None:
    """base += coeffs[g] (x . v_g) u_g^T for the rows of each group g, where base is x W^T.

    The rows then are those of a linear whose weight is W + coeffs[g] z(seeds[g]), z with the distribution
    "outer", u_g v_g^T (docs/noise.md). W is neither read nor written. Of a direction there are out + in signs
    and one product for each row, so trying one costs a pass over `base` and one over `x`, not one over W: the
    low-rank perturbations of EGGROLL (arXiv 2511.16652), of rank 1 and with signs for the factors. Sums are
    float32, each value is rounded once. The op has no gradients.

    Args:
        base: [..., out], float32, bfloat16 or float16, changed in place. It shares memory with no other
            argument.
        x: [..., in] of the dtype of `base`, the input of the linear; its leading sizes multiply to M rows, M
            divisible by G.
        seeds: int64 [G].
        coeffs: float32 [G], the signed size of each group's perturbation.
        stream: of the weight, see :func:`mobizo_kernels.ops.parameter_stream`.
        transposed: the weight is [in, out], as in transformers' Conv1D, not [out, in].

    Raises:
        RuntimeError: before anything is written, if a shape, dtype, device or the number of rows is wrong, if
            `base` shares memory, or if a gradient would be lost.
    """
    check_transforms("mp_outer_", base, x, coeffs)
    torch.ops.mobizo.mp_outer_(base, x, seeds, coeffs, stream, transposed)


def check_mp_outer(base: torch.Tensor, x: torch.Tensor, seeds: torch.Tensor, coeffs: torch.Tensor) -> None:
    op = "mp_outer_"
    check_storage_dtype(op, "x", x)
    check(op, x.dim() >= 1, f"x must have at least one dimension, got shape {shape_of(x)}")
    check_device(op, "base", base, x.device)
    check_dtype_of_x(op, "base", base, x)
    leading = (*x.shape[:-1], base.shape[-1] if base.dim() > 0 else 0)
    check_shape(op, "base", base, leading, f"the leading sizes of x, {shape_of(x)}")
    check_directions(op, seeds, coeffs, "outer", x.device)
    rows, groups = math.prod(x.shape[:-1]), seeds.shape[0]
    if isinstance(rows, int) and isinstance(groups, int):  # a symbolic row count stays free
        check(op, groups >= 1, f"seeds must name at least one group, got shape {shape_of(seeds)}")
        divisible = groups >= 1 and rows % groups == 0
        check(op, divisible, f"rows of x ({rows}) must be divisible by the number of groups ({groups})")
    check_no_gradient(op, base=base, x=x, coeffs=coeffs)


@torch.library.register_fake("mobizo::mp_outer_")
def _(
    base: torch.Tensor,
    x: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    transposed: bool = False,
) -> None:
    check_mp_outer(base, x, seeds, coeffs)
