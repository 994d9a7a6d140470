"""Gradients of mp_lora and mp_lora_linear, for those who mix first order into it: training itself needs none.

For the rows of group g, with W_g = B + coeffs[g] z(seeds[g]), h = x A^T and G the gradient of the result,
dbase = G, dh = scaling * G W_g, dx = dh A, dA = dh^T x, dB = scaling * G^T h, and dcoeffs[g] is the sum of
all elements of scaling * G^T h times z(seeds[g]). As in the forward pass, sums are float32 and rounded once.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from mobizo_kernels.ops.mp_lora import PerturbedAdapter


def adapter_gradients(
    grad: torch.Tensor, x: torch.Tensor, adapter: PerturbedAdapter, wanted: tuple[bool, bool, bool, bool]
) -> list[torch.Tensor | None]:
    """The gradients of x, lora_a, lora_b and coeffs, each in the dtype of its tensor; None where not wanted.

    One group after another, so that one direction at a time is in memory.
    """
    lora_a, lora_b, seeds, coeffs, scaling, stream, distribution = adapter
    of_x, of_a, of_b, of_coeffs = wanted
    (out_features, rank), groups = lora_b.shape, seeds.shape[0]
    group_rows = math.prod(x.shape[:-1]) // groups
    grad = grad.reshape(groups, group_rows, out_features)
    rows = x.reshape(groups, group_rows, x.shape[-1])
    a, b = lora_a.float(), lora_b.float()
    sum_a, sum_b, parts_x, parts_coeffs = torch.zeros_like(a), torch.zeros_like(b), [], []
    for group in range(groups):
        g, x_g = grad[group].float(), rows[group].float()
        if of_x or of_a or of_coeffs:
            z = torch.ops.mobizo.noise((out_features, rank), seeds[group], stream, distribution)
        if of_x or of_a:
            grad_h = scaling * (g @ (b + coeffs[group] * z))
            sum_a = sum_a + grad_h.t() @ x_g
        if of_x:
            parts_x.append((grad_h @ a).to(x.dtype))
        if of_b or of_coeffs:
            grad_b = scaling * (g.t() @ (x_g @ a.t()))
            sum_b = sum_b + grad_b
        if of_coeffs:
            parts_coeffs.append((grad_b * z).sum())
    return [
        torch.stack(parts_x).reshape(x.shape) if of_x else None,
        sum_a.to(lora_a.dtype) if of_a else None,
        sum_b.to(lora_b.dtype) if of_b else None,
        torch.stack(parts_coeffs) if of_coeffs else None,
    ]


def _save(ctx: Any, adapter: PerturbedAdapter, *others: torch.Tensor) -> None:
    ctx.save_for_backward(*others, *adapter.tensors().values())
    ctx.numbers = adapter[4:]


def _mp_lora_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, x, *adapter = inputs
    _save(ctx, PerturbedAdapter(*adapter), x)


def _mp_lora_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_base, of_x, of_a, of_b, _, of_coeffs, *_ = ctx.needs_input_grad
    x, *tensors = ctx.saved_tensors
    adapter = PerturbedAdapter(*tensors, *ctx.numbers)
    grad_x, a, b, coeffs = adapter_gradients(grad, x, adapter, (of_x, of_a, of_b, of_coeffs))
    return grad if of_base else None, grad_x, a, b, None, coeffs, None, None, None


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, _, *adapter = inputs
    _save(ctx, PerturbedAdapter(*adapter), weight, x)


def _linear_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_x, of_weight, of_bias, of_a, of_b, _, of_coeffs, *_ = ctx.needs_input_grad
    weight, x, *tensors = ctx.saved_tensors
    adapter = PerturbedAdapter(*tensors, *ctx.numbers)
    grad_x, a, b, coeffs = adapter_gradients(grad, x, adapter, (of_x, of_a, of_b, of_coeffs))
    if grad_x is not None:
        grad_x = grad_x + grad @ weight
    rows = grad.reshape(-1, weight.shape[0])
    grad_weight = rows.t() @ x.reshape(-1, weight.shape[1]) if of_weight else None
    grad_bias = rows.sum(0) if of_bias else None
    return grad_x, grad_weight, grad_bias, a, b, None, coeffs, None, None, None


torch.library.register_autograd("mobizo::mp_lora", _mp_lora_backward, setup_context=_mp_lora_context)
torch.library.register_autograd("mobizo::mp_lora_linear", _linear_backward, setup_context=_linear_context)
