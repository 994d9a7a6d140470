"""zo_adam: Adam on the zeroth-order estimate, both averages and the parameter in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mobizo_kernels.ops.fakes import register_foreach, register_update
from mobizo_kernels.ops.transforms import check_transforms


def zo_adam(
    param: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    stream: int,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """One step of Adam along g = sum_i coeffs[i] * z(seeds[i]), in place; g itself never exists.

    exp_avg = beta1 * exp_avg + (1 - beta1) * g, exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g and
    param = decay * param - lr * exp_avg / (sqrt(exp_avg_sq) + eps): the efficient form of Kingma and Ba
    (arXiv 1412.6980, section 2), where the caller folds sqrt(1 - beta2^t) / (1 - beta1^t) into `lr`. Each
    operation rounds once to float32 (the sums of three terms are fused) and the parameter once to its dtype:
    the same bits on every backend and thread count.

    Args:
        param: float32, bfloat16 or float16, any shape, changed in place.
        exp_avg: float32 of the shape of `param`, changed in place.
        exp_avg_sq: the same.
        seeds: int64 [n].
        coeffs: float32 [n], projected gradient / queries: a positive one is descended.
        lr: float32 [1], on the device of `param`.
        stream: the parameter's stream, see :func:`mobizo_kernels.ops.parameter_stream`.
        beta1, beta2, eps: as in `torch.optim.Adam`; 1 - beta is made in float64 and rounded once.
        decay: factor on the old parameter; 1 - lr * weight_decay for decoupled weight decay.
        distribution: "gaussian", "rademacher" or "outer".

    Returns:
        float32 [1], the L2 norm of the change of the stored parameter.

    Raises:
        RuntimeError: before anything is written, if a shape, dtype, device or the distribution is wrong.
    """
    check_transforms("zo_adam", param, exp_avg, exp_avg_sq, coeffs, lr)
    return torch.ops.mobizo.zo_adam(
        param, exp_avg, exp_avg_sq, seeds, coeffs, lr, stream, beta1, beta2, eps, decay, distribution
    )


def foreach_zo_adam_(
    params: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    lr: torch.Tensor,
    streams: Sequence[int],
    beta1: float,
    beta2: float,
    eps: float,
    decay: float = 1.0,
    distribution: str = "gaussian",
) -> None:
    """:func:`zo_adam` of every parameter of a model in one call, without the norms.

    Args:
        params: n_params tensors, of any mix of float32, bfloat16 and float16, changed in place.
        exp_avgs: n_params tensors, float32, each of the shape of its parameter, changed in place.
        exp_avg_sqs: the same.
        seeds, coeffs, lr, beta1, beta2, eps, decay, distribution: as in :func:`zo_adam`, shared by all
            parameters.
        streams: n_params streams, one for each parameter.

    Raises:
        RuntimeError: before anything is written, in the cases of :func:`zo_adam`, or if a list has another
            length or holds a tensor twice.
    """
    check_transforms("foreach_zo_adam_", *params, *exp_avgs, *exp_avg_sqs, coeffs, lr)
    torch.ops.mobizo.foreach_zo_adam_(
        params, exp_avgs, exp_avg_sqs, seeds, coeffs, lr, streams, beta1, beta2, eps, decay, distribution
    )


register_update("zo_adam")
register_foreach("foreach_zo_adam_")
