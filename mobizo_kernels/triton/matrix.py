"""Products of float32 accuracy on 16-bit matrix units, and tiles of a perturbed LoRA-B.

A float32 value is the exact sum of three bfloat16 values, and the matrix units of all targets multiply
bfloat16 without error and add in float32. So a product of two float32 blocks is six bfloat16 products (the
three left out lie below the last bit), that of a bfloat16 and a float32 block is three, and that of two
blocks of one 16-bit type is itself. Six take as long as three of TF32, are the same on every target, and add
straight into an accumulator that exists already.

A matrix of r columns is taken whole up to 64 ranks, beyond in chunks of 32: what registers hold. Inside a
chunk the ranks are padded: to WIDTH, a power of two and whole counters of noise, and to DEPTH, what the
matrix units take. Where DEPTH is beyond WIDTH the zeros stand between the ranks, not after them, so that
this padding costs no noise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mobizo_kernels.triton.philox import interleave4, noise_by_element, noise_by_quad


@triton.constexpr_function
def width_of(rank: int) -> int:
    return max(4, triton.next_power_of_2(rank)) if rank <= 64 else 32


@triton.constexpr_function
def depth_of(rank: int) -> int:
    return max(16, width_of(rank))


@triton.constexpr_function
def chunks_of(rank: int) -> int:
    return triton.cdiv(rank, width_of(rank))


@triton.jit
def _split(value):
    """The float32 block as three bfloat16 blocks, largest first, whose sum it is."""
    high = value.to(tl.bfloat16)
    rest = value - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
    return high, middle, low


@triton.jit
def dot(a, b, acc):
    """acc + a b for blocks of any of the storage types; sums and `acc` are float32."""
    if a.dtype == b.dtype and a.dtype != tl.float32:
        return tl.dot(a, b, acc)
    if a.dtype == tl.bfloat16:
        high, middle, low = _split(b.to(tl.float32))
        acc = tl.dot(a, low, acc)
        acc = tl.dot(a, middle, acc)
        return tl.dot(a, high, acc)
    a_high, a_middle, a_low = _split(a.to(tl.float32))
    if b.dtype == tl.bfloat16:
        acc = tl.dot(a_low, b, acc)
        acc = tl.dot(a_middle, b, acc)
        return tl.dot(a_high, b, acc)
    b_high, b_middle, b_low = _split(b.to(tl.float32))
    acc = tl.dot(a_low, b_high, acc)
    acc = tl.dot(a_middle, b_middle, acc)
    acc = tl.dot(a_high, b_low, acc)
    acc = tl.dot(a_middle, b_high, acc)
    acc = tl.dot(a_high, b_middle, acc)
    return tl.dot(a_high, b_high, acc)


@triton.jit
def ranks_of_depth(chunk, RANK: tl.constexpr):
    """The rank at each place of a chunk's depth, and whether there is one."""
    SPREAD: tl.constexpr = depth_of(RANK) // width_of(RANK)
    place = tl.arange(0, depth_of(RANK))
    rank = chunk * width_of(RANK) + place // SPREAD
    return rank, (place % SPREAD == 0) & (rank < RANK)


@triton.jit
def load_b(lora_b, columns, out_features, chunk, RANK: tl.constexpr):
    """A chunk of rows `columns` of B [out_features, RANK], zero outside of it: float32 [columns, WIDTH]."""
    rank = chunk * width_of(RANK) + tl.arange(0, width_of(RANK))
    inside = (columns < out_features)[:, None] & (rank < RANK)[None, :]
    return tl.load(lora_b + columns[:, None] * RANK + rank[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def noise_of_b(seed, stream, columns, chunk, RANK: tl.constexpr, DISTRIBUTION: tl.constexpr):
    """The noise of what :func:`load_b` loads, zero beyond the ranks: float32 [columns, WIDTH].

    Element (n, j) of B has noise element n * RANK + j. If RANK is a multiple of four, one Philox call makes
    four neighbours, else it makes one value. `columns` are int64 where B has 2^31 elements or more.
    """
    WIDTH: tl.constexpr = width_of(RANK)
    if RANK % 4 == 0:
        quad = columns[:, None] * (RANK // 4) + (chunk * (WIDTH // 4) + tl.arange(0, WIDTH // 4))[None, :]
        z0, z1, z2, z3 = noise_by_quad(seed, stream, quad, DISTRIBUTION)
        z = interleave4(z0, z1, z2, z3)
    else:
        element = columns[:, None] * RANK + (chunk * WIDTH + tl.arange(0, WIDTH))[None, :]
        z = noise_by_element(seed, stream, element, DISTRIBUTION)
    if RANK % WIDTH != 0:
        z = tl.where((chunk * WIDTH + tl.arange(0, WIDTH) < RANK)[None, :], z, 0.0)
    return z


@triton.jit
def depth_first(w, RANK: tl.constexpr):
    """A chunk of B as a factor of a product: [columns, WIDTH] -> [DEPTH, columns]."""
    if depth_of(RANK) >= 2 * width_of(RANK):
        w = tl.interleave(w, tl.zeros_like(w))
    if depth_of(RANK) >= 4 * width_of(RANK):
        w = tl.interleave(w, tl.zeros_like(w))
    return tl.trans(w)


@triton.jit
def perturbed(b, coeff, z, RANK: tl.constexpr):
    """(B + coeff z)^T in float32: [columns, WIDTH] -> [DEPTH, columns]."""
    return depth_first(tl.fma(tl.zeros_like(z) + coeff, z, b), RANK)
