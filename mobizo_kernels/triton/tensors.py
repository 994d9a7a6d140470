"""What the launches of several ops share: their configuration, and checks and copies of awkward tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.language.target_info import is_cuda, is_hip

# Elements that one program of 128 threads makes or updates. 8 per thread are enough for accesses of 16 bytes
# and leave registers for many programs; a Philox call makes 128 signs, so signs come 16 per thread.
NOISE_BLOCKS = {"gaussian": 1024, "rademacher": 2048}


def noise_launch(tensor: torch.Tensor, distribution: str) -> dict[str, Any]:
    """Configuration of a kernel that visits every element of `tensor`; values don't depend on it.

    There is nothing to contract in these kernels; contraction is switched off to say so.
    """
    return {
        "BLOCK": NOISE_BLOCKS[distribution],
        "VECTOR": 16 // tensor.element_size(),
        "DISTRIBUTION": distribution,
        "num_warps": 2 if is_hip() else 4,
        "enable_fp_fusion": False,
    }


def all_registers() -> dict[str, int]:
    """Launch options: left alone, ptxas spills a few registers where that fits one more program at a time."""
    return {"maxnreg": 255} if is_cuda() else {}


@contextmanager
def contiguous_update(target: torch.Tensor) -> Iterator[torch.Tensor]:
    """A contiguous stand-in for a tensor that a kernel updates: itself, or a copy that is written back."""
    work = target.contiguous()
    yield work
    if work is not target:
        target.copy_(work)
