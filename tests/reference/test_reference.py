"""The numpy twins against the known answers, exact arithmetic and float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    FLAT_DISTRIBUTIONS,
    KNOWN_ANSWERS,
    UNIT_ROUNDOFF,
    directions,
    name_of,
    storage_error,
)
from hypothesis import given
from hypothesis import strategies as st

from mobizo_kernels import reference

FLOATS = st.floats(min_value=-(2.0**40), max_value=2.0**40, width=32, allow_subnormal=True)


def test_philox_words() -> None:
    for seed, stream, counter, *words in KNOWN_ANSWERS["words"]:
        got = reference.philox(int(seed, 16), int(stream, 16), int(counter))
        assert [f"{word:08x}" for word in got.tolist()] == words


@pytest.mark.parametrize("distribution", FLAT_DISTRIBUTIONS)
def test_known_values(distribution: str) -> None:
    for seed, stream, element, bits in KNOWN_ANSWERS[distribution]:
        value = reference.noise(1, int(seed, 16), int(stream, 16), distribution, start=int(element))
        assert f"{int(value.view(np.uint32)[0]):08x}" == bits


def test_known_values_of_matrices() -> None:
    for seed, stream, rows, columns, element, bits in KNOWN_ANSWERS["outer"]:
        z = reference.noise((int(rows), int(columns)), int(seed, 16), int(stream, 16), "outer")
        assert f"{int(z.reshape(-1).view(np.uint32)[int(element)]):08x}" == bits


def test_outer_of_fewer_than_two_dimensions_is_plain_signs() -> None:
    for shape in ((), (7,)):
        assert np.array_equal(
            reference.noise(shape, 3, 4, "outer"), reference.noise(shape, 3, 4, "rademacher")
        )


def test_outer_takes_all_sizes_but_the_first_as_columns() -> None:
    whole = reference.noise((5, 12), 3, 4, "outer")
    assert np.array_equal(reference.noise((5, 3, 4), 3, 4, "outer").reshape(5, 12), whole)
    assert np.linalg.matrix_rank(whole) == 1


def test_outer_refuses_to_start_within_a_matrix() -> None:
    with pytest.raises(ValueError, match="start: expected 0 .*, got 3"):
        reference.noise((5, 12), 3, 4, "outer", start=3)


def test_query_seeds() -> None:
    for run_seed, n, expected in KNOWN_ANSWERS["query_seed"]:
        assert f"{reference.splitmix64(int(run_seed, 16), int(n)):016x}" == expected


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("start", [1, 3, 127, 130])
def test_noise_from_any_element(distribution: str, start: int) -> None:
    whole = reference.noise(300, 5, -9, distribution)
    assert np.array_equal(reference.noise(300 - start, 5, -9, distribution, start=start), whole[start:])


def test_noise_takes_either_sign() -> None:
    assert np.array_equal(reference.noise(9, -1, -2), reference.noise(9, 2**64 - 1, 2**64 - 2))


def test_noise_refuses_an_unknown_distribution() -> None:
    with pytest.raises(ValueError, match="distribution: .*'gaussian', 'outer', 'rademacher'.*'cauchy'"):
        reference.noise(3, 0, 0, "cauchy")


def test_gaussian_is_box_muller() -> None:
    words = reference.philox(11, 12, np.arange(1 << 15)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((np.floor(words[:, 0::2] / 512) * 2 + 1) / 2**24))
    angle = 2 * np.pi * words[:, 1::2] / 2**32
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    error = np.abs(reference.noise(expected.shape, 11, 12) - expected)
    assert (error / radius[..., None]).max() <= 5 * UNIT_ROUNDOFF[torch.float32]


@pytest.mark.parametrize(("distribution", "kurtosis"), [("gaussian", 3), ("rademacher", 1)])
def test_moments(distribution: str, kurtosis: int) -> None:
    z = reference.noise(1 << 18, 3, 4, distribution).astype(np.float64)
    n, five_sigma = z.size, 5 / math.sqrt(z.size)
    assert abs(z.mean()) < five_sigma
    assert abs((z**2).mean() - 1) <= five_sigma * math.sqrt(kurtosis - 1)
    assert abs((z[1:] * z[:-1]).sum() / n) < five_sigma
    assert abs((z**4).mean() - kurtosis) <= five_sigma * (math.sqrt(96) if kurtosis == 3 else 0)


@given(FLOATS, FLOATS, FLOATS)
def test_fma_is_rounded_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    got = reference.fma(a, b, c)
    error = abs(Fraction(float(got)) - exact)
    for neighbour in (np.nextafter(got, np.float32(-np.inf)), np.nextafter(got, np.float32(np.inf))):
        other = abs(Fraction(float(neighbour)) - exact)
        even = int(got.view(np.uint32)) % 2 == 0
        assert error < other or (error == other and even)


@pytest.mark.parametrize("sign", [1, -1])
def test_fma_where_rounding_twice_is_wrong(sign: int) -> None:
    # 24929 * 673 * 2^-24 = 1 + 2^-24, half way between two float32; the addend decides, but float64 drops it.
    a, b, c = sign * 24929.0, 673.0 * 2.0**-24, sign * 2.0**-80
    assert np.float32(a * b + c) == sign
    assert reference.fma(a, b, c) == np.float32(sign * (1 + 2.0**-23))
    assert reference.fma(a, b, -c) == np.float32(sign)


def test_fma_keeps_infinities_and_nan() -> None:
    assert reference.fma(3e38, 10.0, 0.0) == np.inf
    assert np.isnan(reference.fma(np.inf, 1.0, -np.inf))
    assert np.isnan(reference.fma(np.nan, 1.0, 1.0))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_perturb_against_float64(dtype: torch.dtype, distribution: str, rng: torch.Generator) -> None:
    param = torch.randn(7, 9, generator=rng).to(dtype)
    seeds, coeffs = directions(5, rng)
    z = torch.stack([torch.from_numpy(reference.noise((7, 9), int(s), 3, distribution)) for s in seeds])
    terms = coeffs.double()[:, None, None] * z.double()
    expected = 0.75 * param.double() + terms.sum(0)
    magnitude = 0.75 * param.double().abs() + terms.abs().sum(0)
    error = 6 * UNIT_ROUNDOFF[torch.float32] * magnitude
    got = reference.perturb(param, seeds, coeffs, 3, 0.75, distribution)
    error = error + storage_error(expected.abs() + error, dtype)
    assert got.dtype == dtype
    assert bool(((got.double() - expected).abs() <= error).all())


def test_foreach_perturb_is_perturb_of_each(rng: torch.Generator) -> None:
    params = [torch.randn(3, 4, generator=rng), torch.randn(5, generator=rng).bfloat16()]
    seeds, coeffs = directions(2, rng)
    got = reference.foreach_perturb(params, seeds, coeffs, [1, 2], 0.5)
    for param, stream, updated in zip(params, [1, 2], got, strict=True):
        assert torch.equal(updated, reference.perturb(param, seeds, coeffs, stream, 0.5))


def test_zo_update_norm(rng: torch.Generator) -> None:
    param = torch.randn(31, generator=rng).half()
    seeds, coeffs = directions(3, rng)
    updated, norm = reference.zo_update(param, seeds, coeffs, 8, 0.9)
    assert torch.equal(updated, reference.perturb(param, seeds, coeffs, 8, 0.9))
    assert norm == pytest.approx(np.linalg.norm(updated.double().numpy() - param.double().numpy()))


def test_mp_lora_row_by_row(rng: torch.Generator) -> None:
    m, k, n, r, g = 6, 5, 4, 3, 3
    base, x = torch.randn(m, n, generator=rng), torch.randn(m, k, generator=rng)
    lora_a, lora_b = torch.randn(r, k, generator=rng), torch.randn(n, r, generator=rng)
    seeds, coeffs = directions(g, rng)
    expected = np.empty((m, n))
    for row in range(m):
        group = row // (m // g)
        z = reference.noise((n, r), int(seeds[group]), 21).astype(np.float64)
        perturbed = lora_b.double().numpy() + float(coeffs[group]) * z
        for column in range(n):
            hidden = lora_a.double().numpy() @ x[row].double().numpy()
            expected[row, column] = float(base[row, column]) + 2.5 * (hidden @ perturbed[column])
    got = reference.mp_lora(base, x, lora_a, lora_b, seeds, coeffs, 2.5, 21)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-13)
    stacked = reference.mp_lora_stacked(base, x, lora_a, reference.stack_b(lora_b, seeds, coeffs, 21), 2.5)
    assert stacked.dtype == torch.float32
    np.testing.assert_allclose(stacked.numpy(), expected, rtol=0, atol=1e-5)
