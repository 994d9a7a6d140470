"""Tensors on the device under test: with guards around them, or moved there as they are."""

from __future__ import annotations

from typing import Any

import torch
from helpers import poisoned


def guarded(values: torch.Tensor, device: str, before: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The values on the device, and the memory that holds them, where no kernel may touch the NaN around."""
    size = values.numel()
    memory = poisoned(before + size + 2048, dtype=values.dtype).to(device)
    memory[before : before + size] = values.flatten()
    return memory[before : before + size].view(values.shape), memory


def assert_guarded(param: torch.Tensor, memory: torch.Tensor) -> None:
    """Nothing was written around `param`."""
    first = param.storage_offset()
    assert bool(memory[:first].isnan().all())
    assert bool(memory[first + param.numel() :].isnan().all())


def moved(arguments: dict[str, Any], device: str) -> dict[str, Any]:
    """On the device, with the strides they have; tensors without data stay where they are."""
    tensors = {k: v for k, v in arguments.items() if isinstance(v, torch.Tensor) and not v.is_meta}
    return {**arguments, **{k: v.to(device).as_strided(v.shape, v.stride()) for k, v in tensors.items()}}
