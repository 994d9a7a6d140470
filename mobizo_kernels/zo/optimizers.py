"""Optimizers whose gradient is a list of seeds and as many scalars: no gradient or noise tensor is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from mobizo_kernels.ops import foreach_perturb_, parameter_stream


class ZOSGD(torch.optim.Optimizer):
    """Stochastic gradient descent on the zeroth-order estimate (1 / q) sum_k g_k z_k (MeZO, arXiv 2305.17333,
    Algorithm 1; q queries as in MobiZO, arXiv 2409.15520), with momentum and decoupled weight decay.

    Without momentum a step is one pass over each parameter, whatever the number of queries:
    p = (1 - lr * weight_decay) * p - (lr / q) * sum_k g_k z_k. With momentum, as in `torch.optim.SGD`,
    m = momentum * m + (1 / q) * sum_k g_k z_k and p = (1 - lr * weight_decay) * p - lr * m.

    It is a `torch.optim.Optimizer`, so torch's schedulers, parameter groups and state_dict work.

    Args:
        named_parameters: (name, tensor) pairs, or groups of them (dicts whose "params" are such pairs). A
            name is that of the parameter in the un-wrapped model: it chooses the parameter's noise.
        lr: learning rate.
        momentum: in [0, 1); above 0 it keeps one buffer of the size and dtype of each parameter.
        weight_decay: decoupled, as in AdamW (arXiv 1711.05101).
        distribution: "gaussian" or "rademacher".

    Raises:
        ValueError: if a number is out of range or a parameter has no name.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        distribution: str = "gaussian",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "distribution": distribution,
        }
        super().__init__(named_parameters, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own. Raises ValueError as the constructor does."""
        options = {**self.defaults, **param_group}
        for option in ("lr", "weight_decay"):
            if not options[option] >= 0:
                raise ValueError(f"{option} must be at least 0, got {options[option]}")
        if not 0 <= options["momentum"] < 1:
            raise ValueError(f"momentum must be in [0, 1), got {options['momentum']}")
        if options["distribution"] not in ("gaussian", "rademacher"):
            raise ValueError(f"distribution must be gaussian or rademacher, got {options['distribution']!r}")
        super().add_param_group(param_group)
        if "param_names" not in self.param_groups[-1]:
            self.param_groups.pop()
            raise ValueError("parameters must come with their names, as (name, tensor) pairs")

    @torch.no_grad()
    def perturb(self, seeds: torch.Tensor, coeffs: torch.Tensor) -> None:
        """Add sum_k coeffs[k] z(seeds[k]) to every parameter: a trial of full-parameter MeZO, in one pass.

        Args:
            seeds: int64 [n].
            coeffs: float [n]; rounded to float32.
        """
        for group in self.param_groups:
            self._perturb(group, group["params"], seeds, coeffs)

    @torch.no_grad()
    def step(  # type: ignore[override]  # a gradient is an argument here: there is no p.grad to find it in
        self,
        seeds: torch.Tensor,
        projected_grads: torch.Tensor,
        standing: torch.Tensor | None = None,
    ) -> None:
        """Update every parameter along the directions of `seeds`.

        Args:
            seeds: int64 [q].
            projected_grads: float32 [q].
            standing: float32 [q] or None; what of each direction is still on the parameters from the trials
                of this step. It is taken off in the same pass.
        """
        slopes = projected_grads.cpu().double()
        rest = torch.zeros_like(slopes) if standing is None else standing.cpu().double()
        for group in self.param_groups:
            decay = 1.0 - group["lr"] * group["weight_decay"]
            if group["momentum"]:
                self._momentum_step(group, seeds, slopes / len(seeds), rest, decay)
            else:
                coeffs = self._descent(group, slopes) - decay * rest
                self._perturb(group, group["params"], seeds, coeffs, decay)

    def coefficients(self, projected_grads: torch.Tensor) -> torch.Tensor:
        """What :meth:`step` is about to add along each direction: -lr / q * g_k, rounded once to float32 [q].

        It is all that a plain step does, without momentum and weight decay; so it is what a journal keeps.

        Args:
            projected_grads: float32 [q].
        """
        return self._descent(self.param_groups[0], projected_grads.cpu().double()).float()

    @staticmethod
    def _descent(group: dict[str, Any], slopes: torch.Tensor) -> torch.Tensor:
        return -group["lr"] / len(slopes) * slopes

    def _momentum_step(
        self,
        group: dict[str, Any],
        seeds: torch.Tensor,
        gradient: torch.Tensor,
        rest: torch.Tensor,
        decay: float,
    ) -> None:
        params = group["params"]
        for param in params:
            if not self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        buffers = [self.state[param]["momentum_buffer"] for param in params]
        if rest.any():
            self._perturb(group, params, seeds, -rest)
        self._perturb(group, buffers, seeds, gradient, group["momentum"])
        if decay != 1.0:
            torch._foreach_mul_(params, decay)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _perturb(
        self,
        group: dict[str, Any],
        tensors: list[torch.Tensor],
        seeds: torch.Tensor,
        coeffs: torch.Tensor,
        decay: float = 1.0,
    ) -> None:
        """tensors = decay * tensors + sum_k coeffs[k] z(seeds[k]), each under its parameter's stream."""
        device = tensors[0].device
        streams = [parameter_stream(name) for name in group["param_names"]]
        coeffs = coeffs.to(device, torch.float32)
        foreach_perturb_(tensors, seeds.to(device), coeffs, streams, decay, group["distribution"])
