"""What users have today, each at its best: MeZO's perturbation, and the stacked LoRA-B of public P-RGE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def mezo_perturb_(params: Sequence[torch.Tensor], coeff: float) -> None:
    """MeZO (arXiv 2305.17333, Algorithm 1) as its public code has it: a new noise tensor per parameter."""
    for param in params:
        noise = torch.normal(0.0, 1.0, size=param.shape, dtype=param.dtype, device=param.device)
        param.add_(noise, alpha=coeff)


class MaterialisedNoise:
    """Room for one direction of all parameters, kept between steps: MeZO without its allocations.

    Args:
        params: contiguous, of one dtype.
        dtype: of the noise; that of the parameters if None.
    """

    def __init__(self, params: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> None:
        sizes = [param.numel() for param in params]
        self._flat = torch.empty(sum(sizes), dtype=dtype or params[0].dtype, device=params[0].device)
        parts = self._flat.split(sizes)
        self._noise = [part.view_as(param) for part, param in zip(parts, params, strict=True)]
        self._params = list(params)

    def add_gaussian(self, coeff: float) -> None:
        """params += coeff * z, one draw for all of them."""
        self._flat.normal_()
        torch._foreach_add_(self._params, self._noise, alpha=coeff)

    def add_rademacher(self, coeff: float) -> None:
        """params += coeff * z with signs for z, by way of 0 and 1: a pass less than making the signs."""
        self._flat.random_(0, 2)
        torch._foreach_add_(self._params, self._noise, alpha=2 * coeff)
        torch._foreach_sub_(self._params, coeff)


def make_stack_(stack: torch.Tensor, noise: torch.Tensor, lora_b: torch.Tensor, eps: float) -> torch.Tensor:
    """Fill `stack` [2q, ...] with B + eps z and B - eps z of q new directions, by way of `noise` [q, ...]."""
    noise.normal_()
    queries = len(noise)
    torch.add(lora_b, noise, alpha=eps, out=stack[:queries])
    torch.sub(lora_b, noise, alpha=eps, out=stack[queries:])
    return stack


def make_sign_stack_(
    stack: torch.Tensor, noise: torch.Tensor, lora_b: torch.Tensor, eps: float
) -> torch.Tensor:
    """:func:`make_stack_` with signs for z, by way of 0 and 1: B - eps + 2 eps b and B + eps - 2 eps b."""
    noise.random_(0, 2)
    queries = len(noise)
    torch.add(lora_b - eps, noise, alpha=2 * eps, out=stack[:queries])
    torch.sub(lora_b + eps, noise, alpha=2 * eps, out=stack[queries:])
    return stack


def stacked_lora_linear(
    x: torch.Tensor, weight: torch.Tensor, lora_a: torch.Tensor, stack_t: torch.Tensor, scaling: float
) -> torch.Tensor:
    """The adapted linear of P-RGE: one batched product for the adapters of all groups, added in place.

    The public code makes the product by einsum, then scales it and adds it in two more passes.

    Args:
        x: [M, in].
        weight: [out, in].
        lora_a: [r, in].
        stack_t: [G, r, out], the transposed B of every group.
        scaling: alpha / rank.
    """
    groups, rank, features = stack_t.shape
    out = F.linear(x, weight)
    shrunk = F.linear(x, lora_a).view(groups, -1, rank)
    out.view(groups, -1, features).baddbmm_(shrunk, stack_t, alpha=scaling)
    return out
