"""What the launches of several ops share: their configuration, and checks and copies of awkward tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from triton.language.target_info import is_cuda, is_hip

# Elements that one program makes or updates. A Philox call makes 128 signs.
NOISE_BLOCKS = {"gaussian": 1024, "rademacher": 2048, "outer": 1024}


def noise_launch(tensors: Sequence[torch.Tensor], distribution: str, *extents: int) -> dict[str, Any]:
    """Configuration of a kernel that visits every element of `tensors`; values don't depend on it.

    A thread holds 16 values, or 8 where a wavefront has 64 threads or state wants registers as well, in runs
    of VECTOR neighbours, 16 bytes of the widest tensor. There is nothing to contract in these kernels;
    contraction is switched off to say so. `extents` are the rows and columns for directions "outer": RUN
    neighbours, which divides them all, share a word of signs.
    """
    wide = is_hip() or (distribution != "rademacher" and len(tensors) == 1)
    vector = 16 // max(tensor.element_size() for tensor in tensors)
    return {
        "BLOCK": NOISE_BLOCKS[distribution],
        "VECTOR": vector,
        "RUN": math.gcd(vector, *extents),
        "DISTRIBUTION": distribution,
        "num_warps": 2 if wide else 4,
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
