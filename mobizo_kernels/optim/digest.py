"""Whether two processes tune the same: one short number of all that their steps have changed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from mobizo_kernels.optim.base import ZOOptimizer

DIGEST_BYTES = 6
"""So that a digest is an integer that a float64 holds exactly."""

_CHUNK = 1 << 22  # values on the host at a time


def digest(value: Any) -> int:
    """48 bits of blake2b over a value that JSON knows, tuples and data classes by their text."""
    return _number(hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=DIGEST_BYTES))


@torch.no_grad()
def state_digest(optimizer: ZOOptimizer) -> int:
    """48 bits of blake2b over the parameters of an optimizer and its state, by their bits.

    It takes about a second for each gigabyte of them.

    Args:
        optimizer: its parameters count by name, in their order.
    """
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            state = optimizer.state.get(parameter, {})
            for what, value in (("", parameter), *sorted(state.items())):
                tensor = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value)
                found.update(f"{name}\0{what}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
                for chunk in tensor.flatten().split(_CHUNK):
                    found.update(chunk.cpu().contiguous().view(torch.uint8).numpy())
    return _number(found)


def _number(found: Any) -> int:
    return int.from_bytes(found.digest(), "little")
