"""Tests of values, not of words: is what the kernels give normal, symmetric and uncorrelated?

Every test gives a p-value: the probability of a statistic as far off as this one, if the values are what they
should be. Values that are right give uniform p-values, so of a thousand one lies below 0.001.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from mobizo_kernels import ops
from mobizo_kernels.optim import query_seed, query_seeds

Float64 = NDArray[np.float64]
# Gives `count` values of (seed, stream) as `ops.noise` does; another one shows that the battery can fail.
Sampler = Callable[[int, int, int, str], NDArray[np.float32]]

# E[z^k] and E[z^2k] of a normal variable: the mean of a moment, and what its variance follows from.
_NORMAL_MOMENTS = {k: float(stats.norm.moment(k)) for k in range(1, 13)}
_LAGS = 256


@dataclass(frozen=True)
class Verdict:
    """One test: what was looked at, the statistic as text, and its p-value."""

    name: str
    statistic: str
    p_value: float


def kernel_noise(seed: int, stream: int, count: int, distribution: str) -> NDArray[np.float32]:
    """Values of the kernels."""
    return ops.noise([count], torch.tensor(seed), stream, distribution).numpy()


def gaussian(sample: Sampler, count: int) -> Iterator[Verdict]:
    """The shape of one stream: distribution, moments to the sixth, tails."""
    z = sample(query_seed(1, 0), ops.parameter_stream("battery"), count, "gaussian").astype(np.float64)
    part = z[: min(count, 1_000_000)]  # more, and the 2^24 values that a radius can have would show
    distance = stats.kstest(part, "norm")
    yield Verdict("gaussian: Kolmogorov-Smirnov", f"D = {distance.statistic:.2e}", float(distance.pvalue))
    yield _anderson_darling(part)
    for k in range(1, 7):
        mean, variance = _NORMAL_MOMENTS[k], _NORMAL_MOMENTS[2 * k] - _NORMAL_MOMENTS[k] ** 2
        yield _of_normal(f"gaussian: E[z^{k}]", float((z**k).mean()), mean, np.sqrt(variance / count))
    for edge in (3.0, 4.0, 5.0):
        seen, share = int((np.abs(z) > edge).sum()), 2 * float(stats.norm.sf(edge))
        p = float(stats.binomtest(seen, count, share).pvalue)
        yield Verdict(f"gaussian: |z| > {edge:g}", f"{seen} of {share * count:.0f} expected", p)


def rademacher(sample: Sampler, count: int) -> Iterator[Verdict]:
    """One stream of signs: balance, runs, and how often each of the 256 patterns of 8 signs comes."""
    signs = sample(query_seed(1, 0), ops.parameter_stream("battery"), count, "rademacher")
    ups = int((signs > 0).sum())
    p = float(stats.binomtest(ups, count, 0.5).pvalue)
    yield Verdict("rademacher: balance", f"{ups} of {count} are +1", p)
    changes = int((signs[1:] != signs[:-1]).sum())
    p = float(stats.binomtest(changes, count - 1, 0.5).pvalue)
    yield Verdict("rademacher: changes of sign", f"{changes} of {count - 1}", p)
    patterns = np.packbits(signs[: count // 8 * 8] > 0)
    chi = stats.chisquare(np.bincount(patterns, minlength=256))
    yield Verdict("rademacher: patterns of 8", f"chi2 = {chi.statistic:.1f} (255)", float(chi.pvalue))


def lags(sample: Sampler, count: int, distribution: str) -> Verdict:
    """Correlations of one stream with itself, 1 to 256 elements later: their sum of squares is chi2."""
    z = sample(query_seed(2, 0), ops.parameter_stream("battery"), count, distribution).astype(np.float64)
    values = [float(z[:-lag] @ z[lag:]) / np.sqrt(count - lag) for lag in range(1, _LAGS + 1)]
    total = float(np.square(values).sum())
    p = float(2 * min(stats.chi2.sf(total, _LAGS), stats.chi2.cdf(total, _LAGS)))
    return Verdict(f"{distribution}: lags 1 to {_LAGS}", f"chi2 = {total:.1f} ({_LAGS})", p)


def correlations(sample: Sampler, vectors: int, size: int, distribution: str) -> Iterator[Verdict]:
    """All pairs of directions that meet in runs: other streams, queries, steps and run seeds.

    Args:
        sample: gives the values.
        vectors: how many directions of each kind.
        size: elements of each.
        distribution: of the noise; "outer" is looked at as the matrix that it is.
    """
    name = ops.parameter_stream("battery")
    kinds = {
        "streams": [(query_seed(3, 0), ops.parameter_stream(f"layers.{k}")) for k in range(vectors)],
        "queries": [(int(seed), name) for seed in query_seeds(3, 0, vectors)],
        "steps": [(int(query_seeds(3, step, 32)[0]), name) for step in range(vectors)],
        "run seeds": [(query_seed(run, 0), name) for run in range(vectors)],
    }
    for kind, places in kinds.items():
        rows = np.stack([sample(seed, stream, size, distribution) for seed, stream in places])
        yield _pairs(f"{distribution}: pairs of {kind}", rows)


def _pairs(name: str, rows: NDArray[np.float32]) -> Verdict:
    """The largest of all correlations, which at this size are normal and nearly independent."""
    count, size = rows.shape
    products = (rows @ rows.T)[np.triu_indices(count, 1)].astype(np.float64) / np.sqrt(size)
    worst = float(np.abs(products).max())
    p = float(-np.expm1(products.size * np.log1p(-2 * stats.norm.sf(worst))))
    spread = float(products.std())
    return Verdict(name, f"{products.size} pairs, largest {worst:.2f} sigma, deviation {spread:.4f}", p)


def _of_normal(name: str, value: float, mean: float, error: float) -> Verdict:
    sigmas = (value - mean) / error
    return Verdict(name, f"{value:+.5f}, {sigmas:+.2f} sigma", float(2 * stats.norm.sf(abs(sigmas))))


def _anderson_darling(z: Float64) -> Verdict:
    """A^2 against the normal law, nothing fitted."""
    n, ordered = len(z), np.sort(z)
    weights = 2 * np.arange(1, n + 1) - 1
    a2 = float(-n - (weights * (stats.norm.logcdf(ordered) + stats.norm.logsf(ordered[::-1]))).sum() / n)
    return Verdict("gaussian: Anderson-Darling", f"A2 = {a2:.3f}", 1 - _anderson_darling_cdf(a2))


def _anderson_darling_cdf(a2: float) -> float:
    """P(A^2 < a2) for large samples (Marsaglia and Marsaglia: "Evaluating the Anderson-Darling distribution",
    J. Stat. Software 9, 2004, adinf), within 2e-6."""
    if a2 <= 0:
        return 0.0
    if a2 < 2:
        terms = (2.00012, 0.247105, -0.0649821, 0.0347962, -0.011672, 0.00168691)
        polynomial = sum(term * a2**k for k, term in enumerate(terms))
        return float(np.exp(-1.2337141 / a2) / np.sqrt(a2) * polynomial)
    terms = (1.0776, -2.30695, 0.43424, -0.082433, 0.008056, -0.0003146)
    return float(np.exp(-np.exp(sum(term * a2**k for k, term in enumerate(terms)))))
