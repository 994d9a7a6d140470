"""zo_update: the update of a step, in the form that survives torch.export and ExecuTorch."""

from __future__ import annotations

import torch

from mobizo_kernels.ops.fakes import register_update
from mobizo_kernels.ops.transforms import check_transforms


def zo_update(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """param = decay * param + sum_i coeffs[i] * z(seeds[i]), in place; returns the size of the change.

    The new values are those of :func:`mobizo_kernels.ops.perturb_`, to the bit. An op that returns a small
    tensor of its own, and not the parameter, keeps its mutation through export: the parameter is neither
    copied nor planned twice, and the result keeps the call from being taken for dead code.

    Args:
        param: float32, bfloat16 or float16, any shape, changed in place.
        seeds: int64 [n].
        coeffs: float32 [n]; for plain SGD -(lr / queries) * projected gradient.
        stream: the parameter's stream, see :func:`mobizo_kernels.ops.parameter_stream`.
        decay: factor on the old value.
        distribution: "gaussian", "rademacher" or "outer".

    Returns:
        float32 [1], the L2 norm of the change of the stored values.

    Raises:
        RuntimeError: before anything is written, if a dtype, length, device or the distribution is wrong.
    """
    check_transforms("zo_update", param, coeffs)
    return torch.ops.mobizo.zo_update(param, seeds, coeffs, stream, decay, distribution)


register_update("zo_update")
