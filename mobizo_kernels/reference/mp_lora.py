"""Multi-perturbed LoRA (MobiZO, arXiv 2409.15520): the float64 truth, and the stacked form that others use.

A batch holds G groups of rows, one after another. Group g sees its own LoRA-B, B + coeffs[g] * z(seeds[g]).
"""

from __future__ import annotations

import math

import torch

from mobizo_kernels.reference.noise import noise


def perturbations(
    lora_b: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """coeffs[g] * z(seeds[g]) of every group, float64 [G, out, r]: what the kernels never hold."""
    z = [torch.from_numpy(noise(tuple(lora_b.shape), seed, stream, distribution)) for seed in seeds.tolist()]
    return coeffs.detach().cpu().double()[:, None, None] * torch.stack(z).double()


def mp_lora(
    base: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    scaling: float,
    stream: int,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """base + scaling * (x A^T)(B + coeffs[g] z(seeds[g]))^T for the rows of each group g, in float64.

    Args:
        base: [..., out], the output of the frozen linear.
        x: [..., in]; its leading sizes multiply to M rows, M divisible by G.
        lora_a: [r, in].
        lora_b: [out, r].
        seeds: int64 [G].
        coeffs: float32 [G].
        scaling: alpha / r.
        stream: names lora_b.
        distribution: "gaussian", "rademacher" or "outer".

    Returns:
        float64 tensor of the shape of `base`, not rounded to its dtype.
    """
    stack = lora_b.double() + perturbations(lora_b, seeds, coeffs, stream, distribution)
    return _grouped(base.double(), x.double(), lora_a.double(), stack, scaling)


def stack_b(
    lora_b: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    stream: int,
    distribution: str = "gaussian",
) -> torch.Tensor:
    """One perturbed LoRA-B per group, float32 [G, out, r]: the state that the public P-RGE code keeps."""
    return (lora_b.double() + perturbations(lora_b, seeds, coeffs, stream, distribution)).float()


def mp_lora_stacked(
    base: torch.Tensor, x: torch.Tensor, lora_a: torch.Tensor, stack: torch.Tensor, scaling: float
) -> torch.Tensor:
    """The public P-RGE form: one batched matmul over a stack of LoRA-B, in plain torch. Our benchmarks' peer.

    Args:
        base: [..., out].
        x: [..., in]; cast to the dtype of `lora_a`, which is that of `stack`.
        lora_a: [r, in].
        stack: [G, out, r], from :func:`stack_b`.
        scaling: alpha / r.

    Returns:
        Tensor of the shape and dtype of `base`.
    """
    return _grouped(base, x.to(lora_a.dtype), lora_a, stack, scaling)


def _grouped(
    base: torch.Tensor, x: torch.Tensor, lora_a: torch.Tensor, stack: torch.Tensor, scaling: float
) -> torch.Tensor:
    groups, width = stack.shape[0], x.shape[-1]
    rows = x.reshape(groups, math.prod(x.shape[:-1]) // groups, width)
    delta = torch.bmm(rows @ lora_a.T, stack.transpose(1, 2))
    return base + (scaling * delta).reshape(base.shape).to(base.dtype)
