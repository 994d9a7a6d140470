"""The noise contract, version 1, as Triton device functions: z(seed, stream, element) to the bit.

Every float32 step is exact, an explicit fused multiply-add, a correctly rounded square root or a product that
meets no sum outside an explicit `tl.fma`: a compiler finds nothing to contract, whatever its flags.

Seeds and streams are int64 scalars. Element numbers, quads (four neighbouring elements: element // 4) and
counters are int32 or int64 blocks of any shape, and never negative. `DISTRIBUTION` is "gaussian" or
"rademacher"; "outer", which knows rows and columns, is made of the latter in signs.py.

    noise_run        a run of consecutive elements
    noise_by_quad    the four elements of each quad: one Philox call
    noise_by_element any elements: one Philox call each
"""

from __future__ import annotations

import triton
import triton.language as tl

PHILOX_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
PHILOX_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
PHILOX_WEYL_0 = tl.constexpr(0x9E3779B9)
PHILOX_WEYL_1 = tl.constexpr(0xBB67AE85)

# Bits of sqrt(1/2), where the mantissa's range begins, and the same times 2^24.
SQRT_HALF = tl.constexpr(0x3F3504F3)
SQRT_HALF_SCALED = tl.constexpr(0x3F3504F3 + (24 << 23))


@triton.jit
def _multiply(x, FACTOR: tl.constexpr):
    """High and low word of the 64-bit product."""
    product = x.to(tl.uint64) * FACTOR
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def _words(x):
    """Low and high word of 64 bits; a small launch argument may come as int32."""
    wide = x.to(tl.int64)
    return wide.to(tl.uint32), (wide >> 32).to(tl.uint32)


@triton.jit
def philox(seed, stream, low, high):
    """Philox4x32-10 (Salmon et al., SC'11) of counter high * 2^32 + low: four blocks of words, uint32.

    Scalars stay scalars as long as they can: with a scalar `high`, half of the first two rounds is done once.
    """
    key0, key1 = _words(seed)
    w0, w1 = low, high
    w2, w3 = _words(stream)
    for _ in tl.static_range(10):
        high0, low0 = _multiply(w0, PHILOX_MULTIPLIER_0)
        high1, low1 = _multiply(w2, PHILOX_MULTIPLIER_1)
        w0 = high1 ^ w1 ^ key0
        w1 = low1
        w2 = high0 ^ w3 ^ key1
        w3 = low0
        key0 += PHILOX_WEYL_0
        key1 += PHILOX_WEYL_1
    return w0, w1, w2, w3


@triton.jit
def _high_word(counter):
    """Of int64 counters; int32 ones have none."""
    return (counter >> 32).to(tl.uint32) if counter.dtype == tl.int64 else tl.full((), 0, tl.uint32)


@triton.jit
def _radius(a):
    """sqrt(-2 ln u) of u = k / 2^24, k = the odd integer 2 * (a >> 9) + 1.

    The polynomial is that of ln(1 + f) / f on the mantissa 1 + f in [sqrt(1/2), sqrt(2)); its constants carry
    the factor -2, which a power of two makes exact.
    """
    k = ((a >> 8) | 1).to(tl.int32, bitcast=True)
    offset = k.to(tl.float32).to(tl.int32, bitcast=True) - SQRT_HALF_SCALED
    exponent = (offset >> 23).to(tl.float32)
    f = ((offset & 0x007FFFFF) + SQRT_HALF).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, -2 * 0.08959803730249405, -2 * -0.14482136070728302)
    p = tl.fma(p, f, -2 * 0.14917394518852234)
    p = tl.fma(p, f, -2 * -0.1654374599456787)
    p = tl.fma(p, f, -2 * 0.19958415627479553)
    p = tl.fma(p, f, -2 * -0.25002944469451904)
    p = tl.fma(p, f, -2 * 0.3333415985107422)
    p = tl.fma(p, f, -2 * -0.4999997913837433)
    p = tl.fma(p, f, -2.0)
    return tl.sqrt_rn(tl.fma(exponent, -2 * 0.693147182464599609375, p * f))


@triton.jit
def flip_sign(x, bits):
    """x, negated where the top bit is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (bits & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _cos_sin(b):
    """Cosine and sine of 2 pi b / 2^32: polynomials on an eighth of a turn about the quadrant's axis."""
    t = b + 0x20000000  # its two top bits are the quadrant
    remainder = ((t & 0x3FFFFFFF) - 0x20000000).to(tl.int32, bitcast=True)
    x = remainder.to(tl.float32) * 1.862645149230957e-09
    y = x * x
    s = tl.fma(y, -3.595450834836811e-05, 0.002490007085725665)
    s = tl.fma(s, y, -0.08074543625116348)
    s = tl.fma(s, y, 0.7853981852531433) * x
    c = tl.fma(y, -0.0003188805130776018, 0.015849914401769638)
    c = tl.fma(c, y, -0.3084242641925812)
    c = tl.fma(c, y, 1.0)
    odd_quadrant = (t & 0x40000000) != 0
    cosine = flip_sign(tl.where(odd_quadrant, s, c), t + 0x40000000)
    sine = flip_sign(tl.where(odd_quadrant, c, s), t)
    return cosine, sine


@triton.jit
def _gaussian(seed, stream, low, high):
    """The four Gaussian values of counter high * 2^32 + low."""
    w0, w1, w2, w3 = philox(seed, stream, low, high)
    radius, radius_ = _radius(w0), _radius(w2)
    cosine, sine = _cos_sin(w1)
    cosine_, sine_ = _cos_sin(w3)
    return radius * cosine, radius * sine, radius_ * cosine_, radius_ * sine_


@triton.jit
def gaussian4(seed, stream, counter):
    """Four float32 blocks: the Gaussian values of elements 4 * counter + 0, 1, 2, 3."""
    return _gaussian(seed, stream, counter.to(tl.uint32), _high_word(counter))


@triton.jit
def signs_of_bits(word, bit):
    """+1 where the bit is clear, -1 where it is set, float32."""
    one = tl.full((), 0x3F800000, tl.uint32)
    return (one | ((word << (31 - bit)) & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _select_word(seed, stream, word):
    """Word number `word` of a stream: word 4c + i is the i-th of counter c."""
    counter = word >> 2
    w0, w1, w2, w3 = philox(seed, stream, counter.to(tl.uint32), _high_word(counter))
    even_pair = tl.where((word & 1) == 0, w0, w1)
    odd_pair = tl.where((word & 1) == 0, w2, w3)
    return tl.where((word & 2) == 0, even_pair, odd_pair)


@triton.jit
def noise_by_quad(seed, stream, quad, DISTRIBUTION: tl.constexpr):
    """Four float32 blocks of the shape of `quad`: the noise of elements 4 * quad + 0, 1, 2, 3."""
    if DISTRIBUTION == "gaussian":
        z0, z1, z2, z3 = gaussian4(seed, stream, quad)
    else:
        tl.static_assert(DISTRIBUTION == "rademacher")
        word = _select_word(seed, stream, quad >> 3)
        bit = (quad.to(tl.uint32) & 7) * 4
        z0, z1 = signs_of_bits(word, bit), signs_of_bits(word, bit + 1)
        z2, z3 = signs_of_bits(word, bit + 2), signs_of_bits(word, bit + 3)
    return z0, z1, z2, z3


@triton.jit
def noise_by_element(seed, stream, element, DISTRIBUTION: tl.constexpr):
    """float32 block of the shape of `element`: the noise of any elements, at one Philox call each."""
    if DISTRIBUTION == "gaussian":
        counter = element >> 2
        w0, w1, w2, w3 = philox(seed, stream, counter.to(tl.uint32), _high_word(counter))
        first_pair = (element & 2) == 0
        radius = _radius(tl.where(first_pair, w0, w2))
        cosine, sine = _cos_sin(tl.where(first_pair, w1, w3))
        z = radius * tl.where((element & 1) == 0, cosine, sine)
    else:
        tl.static_assert(DISTRIBUTION == "rademacher")
        z = signs_of_bits(_select_word(seed, stream, element >> 5), element.to(tl.uint32) & 31)
    return z


@triton.jit
def interleave4(z0, z1, z2, z3):
    """[..., n] four times -> [..., 4 n]: z0[0], z1[0], z2[0], z3[0], z0[1], ..., the four of one thread."""
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))


@triton.jit
def noise_run(seed, stream, first, BLOCK: tl.constexpr, VECTOR: tl.constexpr, DISTRIBUTION: tl.constexpr):
    """float32 [BLOCK]: z of elements first, first + 1, ...; `first` is an int64 scalar, a multiple of BLOCK.

    BLOCK is a power of two, at least 128. VECTOR, 4 or 8, is the number of neighbours that one thread holds:
    where it differs from that of the widest access to memory, values cross threads on their way there.
    """
    if DISTRIBUTION == "gaussian":
        low, high = _words(first >> 2)
        if VECTOR == 4:
            z0, z1, z2, z3 = _gaussian(seed, stream, low + tl.arange(0, BLOCK // 4).to(tl.uint32), high)
        else:
            low += 2 * tl.arange(0, BLOCK // 8).to(tl.uint32)
            z0, z1, z2, z3 = _gaussian(seed, stream, low, high)
            z4, z5, z6, z7 = _gaussian(seed, stream, low + 1, high)
            z0, z1, z2, z3 = (
                tl.interleave(z0, z4),
                tl.interleave(z1, z5),
                tl.interleave(z2, z6),
                tl.interleave(z3, z7),
            )
        z = interleave4(z0, z1, z2, z3)
    else:
        tl.static_assert(DISTRIBUTION == "rademacher")
        low, high = _words(first >> 7)
        w0, w1, w2, w3 = philox(seed, stream, low + tl.arange(0, BLOCK // 128).to(tl.uint32), high)
        words = interleave4(w0, w1, w2, w3)
        bit = tl.arange(0, 32).to(tl.uint32)
        z = signs_of_bits(words[:, None], bit[None, :]).reshape(BLOCK)
    return z
