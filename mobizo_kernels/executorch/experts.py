"""Experts of a mixture in the form of one wide multilayer perceptron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class WideExperts(nn.Module):
    """All experts of a layer side by side: every token goes through each, weighted by what it is routed to.

    Which experts a token is sent to is not known when a program is planned: a copy of the weights for each
    token is what that would take. The weights here are those of three linears, which can be quantised.

    Args:
        gate_up: [experts, 2 * I, H], gates above.
        down: [experts, H, I].
        activation: of the gates.
    """

    def __init__(
        self,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        activation: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.experts, self.act_fn = gate_up.shape[0], activation
        gates, ups = gate_up.detach().chunk(2, dim=1)
        self.gate_proj, self.up_proj = _linear(gates.flatten(0, 1)), _linear(ups.flatten(0, 1))
        self.down_proj = _linear(down.detach().transpose(0, 1).flatten(1))

    def forward(self, x: torch.Tensor, routed: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x [tokens, H], the experts of each token int64 [tokens, k], their weights [tokens, k] -> as x."""
        chosen = routed[:, :, None] == torch.arange(self.experts)
        shares = (chosen.to(x.dtype) * weights[:, :, None]).sum(dim=1)
        inner = (self.act_fn(self.gate_proj(x)) * self.up_proj(x)).unflatten(-1, (self.experts, -1))
        return self.down_proj((inner * shares[:, :, None]).flatten(1))


def replace_experts(model: nn.Module) -> None:
    """Put :class:`WideExperts` in the place of every module that turns out to compute it."""
    for name in [name for name, module in model.named_modules() if _may_be_experts(module)]:
        module: Any = model.get_submodule(name)
        candidate = WideExperts(module.gate_up_proj, module.down_proj, module.act_fn)
        if _alike(candidate, module):
            model.set_submodule(name, candidate)


def _may_be_experts(module: nn.Module) -> bool:
    gate_up, down = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    if not isinstance(gate_up, nn.Parameter) or not isinstance(down, nn.Parameter):
        return False
    if not hasattr(module, "act_fn") or gate_up.dim() != 3:
        return False
    experts, double, width = gate_up.shape
    return down.shape == (experts, width, double // 2)


def _alike(candidate: WideExperts, module: nn.Module) -> bool:
    rng = torch.Generator().manual_seed(0)
    tokens = 2 * candidate.experts
    x = torch.randn(tokens, candidate.gate_proj.in_features, generator=rng)
    routed = torch.arange(2 * tokens).view(-1, 2) * 3 % candidate.experts
    weights = torch.rand(routed.shape, generator=rng)
    try:
        expected = module(x, routed, weights)
    except Exception:  # experts of another build
        return False
    atol = 1e-5 * expected.abs().max().item()
    return torch.allclose(candidate(x, routed, weights), expected, rtol=1e-4, atol=atol)


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear
