"""zo_sign: signSGD on the zeroth-order estimate, in one pass and without state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mobizo_kernels.ops.fakes import register_foreach, register_update
from mobizo_kernels.ops.transforms import check_transforms


def zo_sign(
    param: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    stream: int,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """param = decay * param - lr * sign(sum_i coeffs[i] * z(seeds[i])), in place.

    signSGD (Bernstein et al., arXiv 1802.04434) on the zeroth-order estimate; sign(0) = 0, and a sum of NaN
    makes NaN. The sum runs as in :func:`mobizo_kernels.ops.perturb_`, from 0 on; each operation after it
    rounds once to float32 and the parameter once to its dtype: the same bits on every backend and thread
    count.

    Args:
        param: float32, bfloat16 or float16, any shape, changed in place.
        seeds: int64 [n].
        coeffs: float32 [n], projected gradient / queries: a positive one is descended.
        lr: float32 [1], on the device of `param`.
        stream: the parameter's stream, see :func:`mobizo_kernels.ops.parameter_stream`.
        decay: factor on the old parameter; 1 - lr * weight_decay for decoupled weight decay.
        distribution: "gaussian", "rademacher" or "outer".

    Returns:
        float32 [1], the L2 norm of the change of the stored parameter.

    Raises:
        RuntimeError: before anything is written, if a shape, dtype, device or the distribution is wrong.
    """
    check_transforms("zo_sign", param, coeffs, lr)
    return torch.ops.mobizo.zo_sign(param, seeds, coeffs, lr, stream, decay, distribution)


def foreach_zo_sign_(
    params: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    streams: Sequence[int],
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:
    """:func:`zo_sign` of every parameter of a model in one call, without the norms.

    Args:
        params: n_params tensors, of any mix of float32, bfloat16 and float16, changed in place.
        seeds, coeffs, lr, decay, distribution: as in :func:`zo_sign`, shared by all parameters.
        streams: n_params streams, one for each parameter.

    Raises:
        RuntimeError: before anything is written, in the cases of :func:`zo_sign`, or if a list has another
            length or holds a tensor twice.
    """
    check_transforms("foreach_zo_sign_", *params, coeffs, lr)
    torch.ops.mobizo.foreach_zo_sign_(params, seeds, coeffs, lr, streams, decay, distribution)


register_update("zo_sign")
register_foreach("foreach_zo_sign_")
