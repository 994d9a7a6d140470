"""What several tests share: readable ids, known answers, awkward tensors, and error bounds."""

from __future__ import annotations

import json
import math
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mobizo_kernels import reference
from mobizo_kernels.reference.mp_lora import perturbations

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DISTRIBUTIONS = ("gaussian", "rademacher", "outer")
FLAT_DISTRIBUTIONS = DISTRIBUTIONS[:2]  # that know no rows and columns
SEEDS = (0, 7, -1, 2**63 - 1, -(2**63), -6148914691236517206)

KNOWN_ANSWERS: dict[str, Any] = json.loads((Path(__file__).parent / "noise_vectors.json").read_text())

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def name_of(value: Any) -> str:
    """A readable test id: float32, 3x5, gaussian."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict):
        return "-".join(value)
    if isinstance(value, (tuple, list)):
        return "x".join(name_of(item) for item in value) or "scalar"
    return str(value)


def covering(first: Sequence[Any], second: Sequence[Any], *others: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases in which each value of `first` meets each of `second`, and those of the others take turns.

    Every two values of two axes meet where an axis is as long as the next one; a full product would add
    triples, at several times the cost.
    """
    return [
        (a, b, *(values[(i + j) % len(values)] for values in others))
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


def signed(word: str) -> int:
    """A hexadecimal 64-bit pattern as the int64 that a tensor holds."""
    return int.from_bytes(bytes.fromhex(word), "big", signed=True)


def directions(count: int, rng: torch.Generator, scale: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeds int64 [count] of both signs and coefficients float32 [count]."""
    seeds = torch.randint(-(2**63), 2**63 - 1, (count,), generator=rng)
    return seeds, scale * torch.randn(count, generator=rng)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of NaN: whatever an op forgets to write shows."""
    return torch.full(shape, math.nan, dtype=dtype)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in a view with NaN between the elements of every dimension and around them."""
    holder = poisoned(*(2 * size + 1 for size in tensor.shape), dtype=tensor.dtype)
    view = holder[tuple(slice(1, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view


def gaps_untouched(view: torch.Tensor) -> bool:
    """Whether the NaN around the elements of a :func:`strided` view are still there."""
    holder = view._base
    assert holder is not None
    return int(holder.isnan().sum()) == holder.numel() - view.numel() + int(view.isnan().sum())


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal dtype, shape and bits; NaN equals NaN whatever its payload, and -0 is not 0."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    assert torch.equal(actual[~nan], expected[~nan])
    assert torch.equal(actual[~nan].signbit(), expected[~nan].signbit())


def assert_norm(norm: torch.Tensor, expected: float, operations: int = 0) -> None:
    """One float32 rounding of each difference and one of the root are 2 units in the last place at most; a
    squared change may pass through more of them, `operations`.
    """
    assert norm.dtype == torch.float32
    assert norm.shape == (1,)
    error = 2.0**-22 + gamma(operations) / 2
    assert norm.item() == pytest.approx(expected, rel=error, abs=0, nan_ok=True)


def assert_norm_of_gpu(norm: torch.Tensor, expected: float) -> None:
    """By the kernels for GPUs: the square, 15 sums in a thread, 6 in a warp, 2 in a block in float32."""
    assert_norm(norm, expected, 1 + 15 + 6 + 2)


def on_device(arguments: dict[str, Any], device: str) -> dict[str, Any]:
    """The same keyword arguments with every tensor on `device`."""
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes inside the block."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """This process can get no more than `more` bytes of memory inside the block (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def gamma(operations: int, unit: float = UNIT_ROUNDOFF[torch.float32]) -> float:
    """Higham's gamma_n: the relative error that n float32 roundings in any order can reach."""
    return operations * unit / (1 - operations * unit)


def storage_error(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Error of rounding a float32 into storage: half a unit in the last place, or half a subnormal."""
    if dtype == torch.float32:
        return torch.zeros_like(value)
    return UNIT_ROUNDOFF[dtype] * value.abs() + torch.finfo(dtype).smallest_normal * UNIT_ROUNDOFF[dtype]


def assert_close_to_mp_lora(
    actual: torch.Tensor,
    base: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    seeds: torch.Tensor,
    coeffs: torch.Tensor,
    scaling: float,
    stream: int,
    distribution: str = "gaussian",
    base_error: torch.Tensor | None = None,
) -> None:
    """Within the error that float32 sums of any order may have, of the float64 reference.

    A value passes through at most K roundings in x A^T, 2 in B + c z, r in the second sum, 2 in the scaling
    and one in the sum with the base (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1),
    then one into storage. `base_error` is what the base itself is uncertain by.
    """
    args = (lora_a, lora_b, seeds, coeffs, scaling, stream, distribution)
    expected = reference.mp_lora(base, x, *args)
    noise = perturbations(lora_b, seeds, coeffs, stream, distribution)
    magnitude = _grouped_magnitude(base, x, lora_a, lora_b, noise, scaling)
    error = gamma(lora_a.shape[1] + lora_a.shape[0] + 5) * magnitude
    if base_error is not None:
        error = error + base_error
    error = error + storage_error(expected.abs() + error, base.dtype)
    assert actual.dtype == base.dtype
    assert actual.shape == base.shape
    excess = (actual.double() - expected).abs() - error
    assert not actual.isnan().any()
    assert bool((excess <= 0).all()), f"beyond the bound by {float(excess.max()):.3g}"


def _grouped_magnitude(
    base: torch.Tensor,
    x: torch.Tensor,
    lora_a: torch.Tensor,
    lora_b: torch.Tensor,
    noise: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """The same sums over absolute values."""
    return reference.mp_lora_stacked(
        base.double().abs(),
        x.double().abs(),
        lora_a.double().abs(),
        lora_b.double().abs() + noise.abs(),
        abs(scaling),
    )
