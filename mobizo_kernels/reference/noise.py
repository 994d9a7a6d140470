"""The noise contract, version 1, in numpy: z(seed, stream, element) to the bit.

Words come from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11), Gaussian
values from Box-Muller (1958) with polynomials in place of libm, Rademacher values from single bits, and the
seeds of queries from SplitMix64 (Steele et al., OOPSLA'14). Written for reading; speed is the kernels' part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt64 = npt.NDArray[np.uint64]

_MASK32 = np.uint64(0xFFFFFFFF)
_MASK64 = (1 << 64) - 1
_SHIFT32 = np.uint64(32)

_PHILOX_M0, _PHILOX_M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B9, 0xBB67AE85

_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_LN2 = np.float32(0.693147182464599609375)
# Minimax polynomials: ln(1 + f) / f on the mantissa, sin and cos of an eighth turn; highest power first.
_LOG_POLY = (
    0.08959803730249405, -0.14482136070728302, 0.14917394518852234, -0.1654374599456787, 0.19958415627479553,
    -0.25002944469451904, 0.3333415985107422, -0.4999997913837433, 1.0,
)  # fmt: skip
_SIN_POLY = (-3.595450834836811e-05, 0.002490007085725665, -0.08074543625116348, 0.7853981852531433)
_COS_POLY = (-0.0003188805130776018, 0.015849914401769638, -0.3084242641925812, 1.0)


def splitmix64(state: int, n: int) -> int:
    """Output number `n` (from 0) of SplitMix64 started at `state`, as an unsigned 64-bit integer."""
    z = (state + (n + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Float32:
    """a * b + c on float32 values, rounded once.

    The product of two float32 is exact in float64, but rounding the sum to float64 and then to float32 can
    end on the wrong side of a tie. Rounding to odd first (Boldo and Melquiond, IEEE TC 2008) prevents that.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        product = np.asarray(a, np.float32).astype(np.float64) * np.asarray(b, np.float32).astype(np.float64)
        addend = np.broadcast_to(np.asarray(c, np.float32), product.shape).astype(np.float64)
        total = np.asarray(product + addend)
        back = total - product
        error = (product - (total - back)) + (addend - back)
        bits = total.view(np.int64)
        step = np.where((error > 0) == (total > 0), 1, -1)
        inexact_even = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
        odd = np.where(inexact_even, bits + step, bits).view(np.float64)
        return odd.astype(np.float32)


def philox(seed: int, stream: int, counter: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 words of each 64-bit counter, uint32 [..., 4]; seed and stream may have either sign."""
    seed, stream = int(seed) & _MASK64, int(stream) & _MASK64
    c = np.asarray(counter, dtype=np.uint64)
    c0, c1 = c & _MASK32, c >> _SHIFT32
    c2, c3 = np.full_like(c, stream & 0xFFFFFFFF), np.full_like(c, stream >> 32)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        left, right = _PHILOX_M0 * c0, _PHILOX_M1 * c2
        c0, c1 = (right >> _SHIFT32) ^ c1 ^ np.uint64(k0), right & _MASK32
        c2, c3 = (left >> _SHIFT32) ^ c3 ^ np.uint64(k1), left & _MASK32
        k0, k1 = (k0 + _PHILOX_W0) & 0xFFFFFFFF, (k1 + _PHILOX_W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def _polynomial(x: Float32, coefficients: Sequence[float]) -> Float32:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = fma(value, x, coefficient)
    return value


def _radius(a: npt.NDArray[np.uint32]) -> Float32:
    """sqrt(-2 ln u), u = k / 2^24 with k odd in [1, 2^24)."""
    k = ((a >> np.uint32(9)) * np.uint32(2) + np.uint32(1)).astype(np.float32)
    bits = k.view(np.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> np.int32(23)
    f = (bits - (exponent << np.int32(23))).view(np.float32) - np.float32(1)
    log_mantissa = _polynomial(f, _LOG_POLY) * f
    log_u = fma((exponent - np.int32(24)).astype(np.float32), _LN2, log_mantissa)
    return np.sqrt(np.float32(-2) * log_u)


def _sin_cos(b: npt.NDArray[np.uint32]) -> tuple[Float32, Float32]:
    """Sine and cosine of b / 2^32 turns: a quadrant, and at most an eighth turn either side of its axis."""
    quadrant = (b + np.uint32(0x20000000)) >> np.uint32(30)
    offset = (b - (quadrant << np.uint32(30))).view(np.int32)
    x = offset.astype(np.float32) * np.float32(1.862645149230957e-09)
    y = x * x
    s, c = _polynomial(y, _SIN_POLY) * x, _polynomial(y, _COS_POLY)
    swap = (quadrant & 1) == 1
    s, c = np.where(swap, c, s), np.where(swap, s, c)
    s = np.where((quadrant & 2) != 0, -s, s)
    c = np.where(((quadrant + 1) & 2) != 0, -c, c)
    return s, c


def _gaussian(seed: int, stream: int, first: int, count: int) -> Float32:
    """`count` values from element `first` on; one counter gives four values."""
    start = first // 4
    words = philox(seed, stream, np.arange(start, -(-(first + count) // 4), dtype=np.uint64))
    radius = _radius(words[:, 0::2])
    sin, cos = _sin_cos(words[:, 1::2])
    values = np.stack([radius * cos, radius * sin], axis=-1).reshape(-1)
    return values[first - 4 * start :][:count]


def _rademacher(seed: int, stream: int, first: int, count: int) -> Float32:
    """`count` values from element `first` on; one counter gives 128 values."""
    start = first // 128
    words = philox(seed, stream, np.arange(start, -(-(first + count) // 128), dtype=np.uint64))
    bits = (words[:, :, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    values = np.float32(1) - np.float32(2) * bits.astype(np.float32).reshape(-1)
    return values[first - 128 * start :][:count]


def _outer(seed: int, stream: int, shape: tuple[int, ...]) -> Float32:
    """u v^T of signs, [shape[0], product of the other sizes], flat."""
    rows, columns = shape[0], math.prod(shape[1:])
    signs = _rademacher(seed, stream, 0, rows + columns)
    return np.multiply.outer(signs[:rows], signs[rows:]).reshape(-1)


_DISTRIBUTIONS = {"gaussian": _gaussian, "rademacher": _rademacher, "outer": _rademacher}


def noise(
    size: int | Sequence[int], seed: int, stream: int, distribution: str = "gaussian", start: int = 0
) -> Float32:
    """z(seed, stream, e) for e = start, start + 1, ..., in row-major order of `size`.

    Args:
        size: number of elements, or a shape.
        seed, stream: any 64-bit integers, signed or unsigned; only the bit pattern matters.
        distribution: "gaussian" (mean 0, variance 1), "rademacher" (+1 or -1) or "outer" (a sign of the
            row times one of the column; plain signs where `size` has fewer than two dimensions).
        start: index of the first element; 0 for "outer" of two or more dimensions.

    Returns:
        float32 array of shape `size`.

    Raises:
        ValueError: if the distribution is unknown, or `start` is not 0 where it must be.
    """
    if distribution not in _DISTRIBUTIONS:
        raise ValueError(f"distribution: expected one of {sorted(_DISTRIBUTIONS)}, got {distribution!r}")
    shape = (size,) if isinstance(size, int) else tuple(size)
    if distribution == "outer" and len(shape) > 1:
        if start != 0:
            raise ValueError(f"start: expected 0 for directions 'outer' of a matrix, got {start}")
        return _outer(seed, stream, shape).reshape(shape)
    return _DISTRIBUTIONS[distribution](seed, stream, start, math.prod(shape)).reshape(shape)
