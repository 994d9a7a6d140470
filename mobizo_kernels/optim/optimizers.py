"""The optimizers: SGD with momentum, Adam and signSGD on the zeroth-order estimate."""

from __future__ import annotations

from typing import Any

import torch

from mobizo_kernels.ops import foreach_zo_adam_, foreach_zo_momentum_, foreach_zo_sign_
from mobizo_kernels.optim.base import NamedParameters, ZOOptimizer
from mobizo_kernels.optim.update_rule import UpdateRule


class ZOSGD(ZOOptimizer):
    """Stochastic gradient descent on the zeroth-order estimate (MeZO, arXiv 2305.17333, Algorithm 1; q
    queries as in MobiZO, arXiv 2409.15520), with momentum and decoupled weight decay:

    p = (1 - lr * weight_decay) * p - (lr / q) * sum_k g_k z_k, or with momentum
    m = momentum * m - (lr / q) * sum_k g_k z_k and p = (1 - lr * weight_decay) * p + m.

    The velocity m is a mean of steps, where that of `torch.optim.SGD` is one of gradients, which it
    multiplies by the learning rate of the day. While the learning rate stays the two are the same; when it
    falls, our steps of before keep their size, and fade within 1 / (1 - momentum) steps.

    Args:
        named_parameters: (name, tensor) pairs, or groups of them (dicts whose "params" are such pairs). A
            name is that of the parameter in the un-wrapped model: it chooses the parameter's noise.
        lr: learning rate.
        momentum: in [0, 1); above 0 it keeps one float32 buffer of the size of each parameter.
        weight_decay: decoupled, as in AdamW (arXiv 1711.05101).
        distribution: "gaussian", "rademacher" or "outer".

    Raises:
        ValueError: if a number is out of range or a parameter has no name.
    """

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        distribution: str = "gaussian",
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "distribution": distribution}
        super().__init__(named_parameters, **options)

    @staticmethod
    def rule_of(group: dict[str, Any]) -> UpdateRule:
        lr, decay = ZOOptimizer.first_rate(group), group["weight_decay"]
        return UpdateRule.sgd(lr, momentum=group["momentum"], weight_decay=decay)

    def update(
        self, group: dict[str, Any], seeds: torch.Tensor, coeffs: torch.Tensor, rate: torch.Tensor,
        decay: float = 1.0,
    ) -> None:  # fmt: skip
        if not group["momentum"]:
            self._perturb(group, seeds, coeffs, decay)
            return
        (velocities,) = self._state(group)
        foreach_zo_momentum_(
            group["params"], velocities, seeds, coeffs, self._streams(group), group["momentum"], decay,
            group["distribution"],
        )  # fmt: skip


class ZOAdam(ZOOptimizer):
    """Adam (arXiv 1412.6980) on the zeroth-order estimate g = (1 / q) sum_k g_k z_k, weight decay decoupled:

    m = beta1 * m + (1 - beta1) * g, v = beta2 * v + (1 - beta2) * g^2 and
    p = (1 - lr * weight_decay) * p - rate * m / (sqrt(v) + eps), with
    rate = lr * sqrt(1 - beta2^t) / (1 - beta1^t) in update t, from 1: the order of operations at the end of
    the paper's section 2, whose eps stands beside an uncorrected sqrt(v).

    Args:
        named_parameters: as for :class:`ZOSGD`.
        lr: learning rate; a parameter moves by about as much in each of the first steps.
        betas: both in [0, 1).
        eps: above 0.
        weight_decay: decoupled.
        distribution: "gaussian", "rademacher" or "outer".

    Raises:
        ValueError: if a number is out of range or a parameter has no name.
    """

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        distribution: str = "gaussian",
    ) -> None:
        options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "distribution": distribution}
        super().__init__(named_parameters, lr=lr, **options)

    @staticmethod
    def rule_of(group: dict[str, Any]) -> UpdateRule:
        lr, decay = ZOOptimizer.first_rate(group), group["weight_decay"]
        return UpdateRule.adam(lr, betas=group["betas"], eps=group["eps"], weight_decay=decay)

    def update(
        self, group: dict[str, Any], seeds: torch.Tensor, coeffs: torch.Tensor, rate: torch.Tensor,
        decay: float = 1.0,
    ) -> None:  # fmt: skip
        (means, squares), (beta1, beta2) = self._state(group), group["betas"]
        foreach_zo_adam_(
            group["params"], means, squares, seeds, coeffs, rate, self._streams(group), beta1, beta2,
            group["eps"], decay, group["distribution"],
        )  # fmt: skip

    def count(self, group: dict[str, Any]) -> None:
        for param in group["params"]:
            self.state[param]["step"] = self.state[param].get("step", 0) + 1


class ZOSign(ZOOptimizer):
    """signSGD (arXiv 1802.04434) on the zeroth-order estimate, weight decay decoupled:
    p = (1 - lr * weight_decay) * p - lr * sign(sum_k g_k z_k). Every parameter moves by lr in every step.

    Args:
        named_parameters: as for :class:`ZOSGD`.
        lr: learning rate.
        weight_decay: decoupled.
        distribution: "gaussian", "rademacher" or "outer".

    Raises:
        ValueError: if a number is out of range or a parameter has no name.
    """

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        distribution: str = "gaussian",
    ) -> None:
        super().__init__(named_parameters, lr=lr, weight_decay=weight_decay, distribution=distribution)

    @staticmethod
    def rule_of(group: dict[str, Any]) -> UpdateRule:
        return UpdateRule.sign(ZOOptimizer.first_rate(group), weight_decay=group["weight_decay"])

    def update(
        self, group: dict[str, Any], seeds: torch.Tensor, coeffs: torch.Tensor, rate: torch.Tensor,
        decay: float = 1.0,
    ) -> None:  # fmt: skip
        foreach_zo_sign_(
            group["params"], seeds, coeffs, rate, self._streams(group), decay, group["distribution"]
        )


def make_optimizer(
    named_parameters: NamedParameters, rule: UpdateRule, distribution: str = "gaussian"
) -> ZOOptimizer:
    """The optimizer of a rule, for parameters as :class:`ZOSGD` takes them."""
    shared: dict[str, Any] = {"weight_decay": rule.weight_decay, "distribution": distribution}
    if rule.name == "adam":
        return ZOAdam(named_parameters, rule.lr, betas=rule.betas, eps=rule.eps, **shared)
    if rule.name == "sign":
        return ZOSign(named_parameters, rule.lr, **shared)
    return ZOSGD(named_parameters, rule.lr, momentum=rule.momentum, **shared)
