"""More elements than 32 bits count: indices, sizes and the parts of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mobizo_kernels import ops, reference

SIZE = 2**31 + 300  # 4.3 GB of bfloat16
SEED, STREAM = -5, 11


def signs(begin: int, end: int) -> torch.Tensor:
    """Elements of the Rademacher noise, from its words; `begin` is a multiple of 128."""
    words = np.ascontiguousarray(reference.philox(SEED, STREAM, np.arange(begin // 128, -(-end // 128))))
    bits = np.unpackbits(words.view(np.uint8), axis=None, bitorder="little")
    return torch.from_numpy(1.0 - 2.0 * bits[: end - begin]).bfloat16()


@pytest.mark.big
def test_rademacher() -> None:
    """Noise, then the same noise added to it in place: at the start, around 2^31 and at the end."""
    z = ops.noise([SIZE], torch.tensor(SEED), STREAM, "rademacher", dtype=torch.bfloat16)
    for factor in (1, 2):
        for begin, end in ((0, 1000), (2**31 - 1280, SIZE)):
            assert torch.equal(z[begin:end], factor * signs(begin, end))
        if factor == 1:
            ops.perturb_(z, torch.tensor([SEED]), torch.ones(1), STREAM, 1.0, "rademacher")
