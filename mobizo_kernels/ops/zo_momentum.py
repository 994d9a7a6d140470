"""zo_momentum: momentum on the zeroth-order estimate, the state and the parameter in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mobizo_kernels.ops.fakes import register_foreach, register_update
from mobizo_kernels.ops.transforms import check_transforms


def zo_momentum(
    param: torch.Tensor,
    momentum: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    beta: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """momentum = beta * momentum + sum_i coeffs[i] * z(seeds[i]); param = decay * param + momentum. In place.

    Heavy-ball momentum (Polyak, 1964) in the form that keeps the learning rate in the state: `coeffs` carry
    -lr / queries * projected gradient. The new momentum is that of :func:`mobizo_kernels.ops.perturb_` with
    `beta` for its decay, to the bit; each step after it rounds once to float32, and the parameter is rounded
    to its dtype once: the same bits on every backend and thread count.

    Args:
        param: float32, bfloat16 or float16, any shape, changed in place.
        momentum: float32 of the shape of `param`, changed in place.
        seeds: int64 [n].
        coeffs: float32 [n].
        stream: the parameter's stream, see :func:`mobizo_kernels.ops.parameter_stream`.
        beta: factor on the old momentum.
        decay: factor on the old parameter; 1 - lr * weight_decay for decoupled weight decay.
        distribution: "gaussian", "rademacher" or "outer".

    Returns:
        float32 [1], the L2 norm of the change of the stored parameter.

    Raises:
        RuntimeError: before anything is written, if a shape, dtype, device or the distribution is wrong.
    """
    check_transforms("zo_momentum", param, momentum, coeffs)
    return torch.ops.mobizo.zo_momentum(param, momentum, seeds, coeffs, stream, beta, decay, distribution)


def foreach_zo_momentum_(
    params: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    streams: Sequence[int],
    beta: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:
    """:func:`zo_momentum` of every parameter of a model in one call, without the norms.

    Args:
        params: n_params tensors, of any mix of float32, bfloat16 and float16, changed in place.
        momenta: n_params tensors, float32, each of the shape of its parameter, changed in place.
        seeds, coeffs, beta, decay, distribution: as in :func:`zo_momentum`, shared by all parameters.
        streams: n_params streams, one for each parameter.

    Raises:
        RuntimeError: before anything is written, in the cases of :func:`zo_momentum`, or if a list has
            another length or holds a tensor twice.
    """
    check_transforms("foreach_zo_momentum_", *params, *momenta, coeffs)
    torch.ops.mobizo.foreach_zo_momentum_(params, momenta, seeds, coeffs, streams, beta, decay, distribution)


register_update("zo_momentum")
register_foreach("foreach_zo_momentum_")
