"""noise: materialise a direction. For tests and debugging; training never does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mobizo_kernels.ops.checks import (
    check,
    check_device,
    check_distribution,
    check_storage_dtype,
    dtype_name,
    shape_of,
)
from mobizo_kernels.ops.fakes import named


def noise(
    size: Sequence[int],
    seed: torch.Tensor,
    stream: int,
    distribution: str = "gaussian",
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """z(seed, stream, e) for every element e of a tensor, in row-major order.

    The values are a pure function of their arguments: the same bits on every backend, thread count and device
    (Philox4x32-10, Salmon et al., SC'11; Box-Muller for the Gaussian).

    Args:
        size: shape of the result.
        seed: int64, one element.
        stream: the parameter's stream, see :func:`mobizo_kernels.ops.parameter_stream`.
        distribution: "gaussian" (mean 0, variance 1), "rademacher" (+1 or -1, equally likely) or "outer" (a
            sign of the row times one of the column; with fewer than two sizes the same as "rademacher").
        dtype: float32 (the default), bfloat16 or float16; values are rounded to nearest even.

    Returns:
        Tensor of shape `size` on the device of `seed`.

    Raises:
        RuntimeError: if `seed` is not one int64, a size is negative, or the dtype or distribution is unknown.
    """
    return torch.ops.mobizo.noise(size, seed, stream, distribution, dtype=dtype)


def check_noise(seed: torch.Tensor, distribution: str) -> None:
    is_seed = seed.dtype == torch.int64 and seed.numel() == 1
    got = f"{dtype_name(seed)} of shape {shape_of(seed)}"
    check("noise", is_seed, f"seed must be one int64 value, got {got}")
    check_distribution("noise", distribution)


@torch.library.register_fake("mobizo::noise")
def _(*args: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    size, seed, _, distribution = named("noise", args).values()
    check_noise(seed, distribution)
    out: torch.Tensor = seed.new_empty(size, dtype=dtype or torch.float32)
    check_storage_dtype("noise", "dtype", out)
    return out


@torch.library.register_fake("mobizo::noise.out")
def _(*args: Any, dtype: torch.dtype | None = None, out: torch.Tensor) -> torch.Tensor:
    size, seed, _, distribution = named("noise", args).values()
    check_noise(seed, distribution)
    check_device("noise", "out", out, seed.device)
    check_storage_dtype("noise", "out", out)
    wanted = dtype or torch.float32
    check("noise", out.dtype == wanted, f"out must be {wanted}, got {dtype_name(out)}")
    check("noise", list(out.shape) == list(size), f"out must have shape {list(size)}, got {shape_of(out)}")
    return out
