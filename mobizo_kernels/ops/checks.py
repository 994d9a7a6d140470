"""What every fake checks while a graph is traced; the kernels say the same when they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch

from mobizo_kernels.choices import MAX_RANK as MAX_RANK
from mobizo_kernels.choices import Distribution, Lowering

DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)
LOWERINGS: tuple[str, ...] = get_args(Lowering)
STORAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def shape_of(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


def dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check(op: str, condition: bool | torch.SymBool, message: str) -> None:
    if condition is not True:  # which would make torch._check the larger part of a launch
        torch._check(condition, lambda: f"mobizo::{op}: {message}")


def check_storage_dtype(op: str, name: str, tensor: torch.Tensor) -> None:
    supported = tensor.dtype in STORAGE_DTYPES
    check(op, supported, f"{name} must be float32, bfloat16 or float16, got {dtype_name(tensor)}")


def check_dtype_of_x(op: str, name: str, tensor: torch.Tensor, x: torch.Tensor) -> None:
    message = f"{name} must have the dtype of x ({dtype_name(x)}), got {dtype_name(tensor)}"
    check(op, tensor.dtype == x.dtype, message)


def check_shape(op: str, name: str, tensor: torch.Tensor, expected: Sequence[int], described: str) -> None:
    matches = tensor.dim() == len(expected) and tensor.shape == torch.Size(expected)
    check(op, matches, f"{name} must have {described}, got {shape_of(tensor)}")


def check_device(op: str, name: str, tensor: torch.Tensor, device: torch.device) -> None:
    check(op, tensor.device == device, f"{name} must be on {device}, got {tensor.device}")


def check_distribution(op: str, distribution: str) -> None:
    known = distribution in DISTRIBUTIONS
    check(op, known, f"distribution must be 'gaussian', 'rademacher' or 'outer', got '{distribution}'")


def require_distribution(distribution: str) -> None:
    """Raise ValueError, before any op is called, unless there are such directions."""
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")


def check_directions(
    op: str, seeds: torch.Tensor, coeffs: torch.Tensor, distribution: str, device: torch.device
) -> None:
    """seeds int64 [n] and coeffs float32 [n], on the device of the tensor they act on."""
    check_device(op, "seeds", seeds, device)
    check_device(op, "coeffs", coeffs, device)
    check(op, seeds.dim() == 1, f"seeds must have one dimension, got shape {shape_of(seeds)}")
    check(op, seeds.dtype == torch.int64, f"seeds must be int64, got {dtype_name(seeds)}")
    check(op, coeffs.dtype == torch.float32, f"coeffs must be float32, got {dtype_name(coeffs)}")
    check_shape(op, "coeffs", coeffs, seeds.shape, f"the shape of seeds, {shape_of(seeds)}")
    check_distribution(op, distribution)


def check_param(
    op: str, name: str, param: torch.Tensor, seeds: torch.Tensor, coeffs: torch.Tensor, distribution: str
) -> None:
    """A parameter to update, and the directions that it moves along."""
    check_storage_dtype(op, name, param)
    check_directions(op, seeds, coeffs, distribution, param.device)
    check_no_gradient(op, **{name: param, "coeffs": coeffs})


def check_state(op: str, name: str, state: torch.Tensor, param: torch.Tensor) -> None:
    """An optimizer's state of one parameter: float32 of the same shape, on the same device."""
    check_device(op, name, state, param.device)
    check(op, state.dtype == torch.float32, f"{name} must be float32, got {dtype_name(state)}")
    check_shape(op, name, state, param.shape, f"the shape of its parameter, {shape_of(param)}")
    check_no_gradient(op, **{name: state})


def check_one_float(op: str, name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """A learning rate or a norm: float32 [1]."""
    check_device(op, name, tensor, device)
    matches = tensor.dtype == torch.float32 and tensor.shape == (1,)
    got = f"{dtype_name(tensor)} of shape {shape_of(tensor)}"
    check(op, matches, f"{name} must be float32 of shape (1,), got {got}")
    check_no_gradient(op, **{name: tensor})


def check_update(
    op: str,
    written: dict[str, torch.Tensor],
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    distribution: str,
    lr: torch.Tensor | None = None,
) -> None:
    """A parameter and then its state, by their names, the directions and, where there is one, lr."""
    (name, param), *states = written.items()
    check_param(op, name, param, seeds, coeffs, distribution)
    if lr is not None:
        check_one_float(op, "lr", lr, param.device)
    for state_name, state in states:
        check_state(op, state_name, state, param)


def check_no_gradient(op: str, **tensors: torch.Tensor) -> None:
    """Refuses to change a tensor in place where autograd records and would leave the change out."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            message = f"{name} requires a gradient, which a change in place would lose"
            check(op, not tensor.requires_grad, f"{message}; call this under torch.no_grad()")


def check_length(op: str, name: str, entries: Sequence[object], params: Sequence[object]) -> None:
    message = f"{name} must have one entry per parameter ({len(params)}), got {len(entries)}"
    check(op, len(entries) == len(params), message)
