"""perturb_ and foreach_perturb_: add any number of seeded directions to parameters in one pass over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mobizo_kernels.ops.fakes import checked_param, register_foreach
from mobizo_kernels.ops.transforms import check_transforms


def perturb_(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """param = decay * param + sum_i coeffs[i] * z(seeds[i]), in place and in one pass over the parameter.

    The sum runs in float32 in the order of the seeds, one fused multiply-add each, and is rounded to nearest
    even once: the same bits on every backend and thread count. It serves both the perturbation of MeZO
    (arXiv 2305.17333, Algorithm 1) and its update.

    Args:
        param: float32, bfloat16 or float16, any shape, changed in place. Element e in row-major order takes
            noise element e.
        seeds: int64 [n].
        coeffs: float32 [n].
        stream: the parameter's stream, see :func:`mobizo_kernels.ops.parameter_stream`.
        decay: factor on the old value; 1 - lr * weight_decay for decoupled weight decay.
        distribution: "gaussian", "rademacher" or "outer".

    Returns:
        `param`.

    Raises:
        RuntimeError: before anything is written, if a dtype, length, device or the distribution is wrong.
    """
    check_transforms("perturb_", param, coeffs)
    if torch.compiler.is_compiling():
        # Functionalization refuses custom ops that return an alias; the list form returns nothing.
        foreach_perturb_([param], seeds, coeffs, [stream], decay, distribution)
        return param
    return torch.ops.mobizo.perturb_(param, seeds, coeffs, stream, decay, distribution)


def foreach_perturb_(
    params: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    streams: Sequence[int],
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:
    """:func:`perturb_` of every parameter of a model in one call.

    Args:
        params: n_params tensors, of any mix of float32, bfloat16 and float16, changed in place.
        seeds: int64 [n], shared by all parameters.
        coeffs: float32 [n], shared by all parameters.
        streams: n_params streams, one for each parameter.
        decay: factor on the old values.
        distribution: "gaussian", "rademacher" or "outer".

    Raises:
        RuntimeError: before anything is written, if a dtype, length, device or the distribution is wrong.
    """
    check_transforms("foreach_perturb_", *params, coeffs)
    torch.ops.mobizo.foreach_perturb_(params, seeds, coeffs, streams, decay, distribution)


@torch.library.register_fake("mobizo::perturb_")
def _(*args: Any) -> torch.Tensor:
    return checked_param("perturb_", args)


register_foreach("foreach_perturb_")
