"""Estimators: group layout, projected gradients against the formulas, FZOO's normalisation, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mobizo_kernels.zo import Centred, OneSided, TwoSided, make_estimator

SEEDS = torch.tensor([11, -22, 33])


def test_two_sided_layout() -> None:
    estimator = make_estimator("two_sided", queries=3, eps=0.25)
    assert isinstance(estimator, TwoSided)
    assert estimator.groups == 6
    assert estimator.seeds(SEEDS).tolist() == [11, -22, 33, 11, -22, 33]
    assert estimator.coeffs().tolist() == [0.25, 0.25, 0.25, -0.25, -0.25, -0.25]
    assert estimator.coeffs().dtype == torch.float32


def test_one_sided_layout() -> None:
    estimator = make_estimator("one_sided", queries=3, eps=0.25)
    assert isinstance(estimator, OneSided)
    assert estimator.groups == 4
    assert estimator.seeds(SEEDS)[1:].tolist() == [11, -22, 33]
    assert estimator.coeffs().tolist() == [0.0, 0.25, 0.25, 0.25]


def test_centred_layout() -> None:
    estimator = make_estimator("centred", queries=3, eps=0.25)
    assert isinstance(estimator, Centred)
    assert estimator.groups == 3
    assert estimator.seeds(SEEDS).tolist() == SEEDS.tolist()
    assert estimator.coeffs().tolist() == [0.25, 0.25, 0.25]


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_two_sided_gradients(queries: int, rng: torch.Generator) -> None:
    losses = torch.rand(2 * queries, generator=rng)
    plus, minus = losses.double().numpy()[:queries], losses.double().numpy()[queries:]
    estimator = TwoSided(queries, 1e-3)
    assert estimator.loss(losses) == pytest.approx(losses.double().mean().item())
    expected = ((plus - minus) / 2e-3).astype(np.float32)
    np.testing.assert_allclose(estimator.projected_gradients(losses).numpy(), expected, rtol=3e-7)


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_one_sided_gradients(queries: int, rng: torch.Generator) -> None:
    losses = torch.rand(queries + 1, generator=rng)
    values = losses.double().numpy()
    estimator = OneSided(queries, 1e-3)
    assert estimator.loss(losses) == pytest.approx(values[0])
    expected = ((values[1:] - values[0]) / 1e-3).astype(np.float32)
    np.testing.assert_allclose(estimator.projected_gradients(losses).numpy(), expected, rtol=3e-7)


@pytest.mark.parametrize("queries", [2, 3, 8])
def test_centred_gradients(queries: int, rng: torch.Generator) -> None:
    losses = torch.rand(queries, generator=rng)
    values = losses.double().numpy()
    estimator = Centred(queries, 1e-3)
    assert estimator.loss(losses) == pytest.approx(values.mean())
    others = [np.delete(values, k).mean() for k in range(queries)]
    expected = ((values - others) / 1e-3).astype(np.float32)
    np.testing.assert_allclose(estimator.projected_gradients(losses).numpy(), expected, rtol=3e-7)


def test_what_all_losses_have_in_common_cancels(rng: torch.Generator) -> None:
    losses = torch.randint(64, (6,), generator=rng) / 64
    for normalize in (False, True):
        estimator = Centred(6, 1e-3, normalize)
        slopes = estimator.projected_gradients(losses)
        torch.testing.assert_close(estimator.projected_gradients(losses + 2), slopes)
        assert abs(slopes.double().sum().item()) < 1e-5 * slopes.abs().max().item()


def test_centred_gradients_have_the_mean_of_forward_differences(rng: torch.Generator) -> None:
    """(1/q) sum_k g_k z_k is g on average, where a baseline that holds L_k itself gives (q - 1) / q of it."""
    trials, queries, size = 4_000, 3, 4
    slope = torch.randn(size, generator=rng, dtype=torch.float64)
    z = torch.randn(trials, queries, size, generator=rng, dtype=torch.float64)
    losses = 1 + 0.01 * (z @ slope) + 0.5 * (0.01 * z).square().sum(-1)
    estimator = Centred(queries, 0.01)
    slopes = torch.stack([estimator.slopes(each) for each in losses])
    estimate = (slopes[..., None] * z).mean((0, 1))
    deviation = (slopes[..., None] * z).mean(1).std(0) / trials**0.5
    assert ((estimate - slope).abs() < 5 * deviation).all()
    assert ((2 / 3 * slope - slope).abs() > 5 * deviation).any()


def test_normalized_gradients_are_differences_over_the_sample_deviation(rng: torch.Generator) -> None:
    losses = torch.rand(6, generator=rng)
    values = losses.double().numpy()
    two_sided = TwoSided(3, 1e-3, normalize=True).projected_gradients(losses)
    expected = (values[:3] - values[3:]) / 2 / values.std(ddof=1)
    np.testing.assert_allclose(two_sided.numpy(), expected.astype(np.float32), rtol=3e-7)
    one_sided = OneSided(5, 1e-3, normalize=True).projected_gradients(losses)
    expected = (values[1:] - values[0]) / values[1:].std(ddof=1)
    np.testing.assert_allclose(one_sided.numpy(), expected.astype(np.float32), rtol=3e-7)
    centred = Centred(6, 1e-3, normalize=True).projected_gradients(losses)
    expected = (values - values.mean()) / values.std(ddof=1)
    np.testing.assert_allclose(centred.numpy(), expected.astype(np.float32), rtol=3e-7, atol=1e-9)


def test_normalized_gradients_do_not_depend_on_the_scale_of_the_loss(rng: torch.Generator) -> None:
    losses = torch.rand(8, generator=rng)
    estimator = TwoSided(4, 1e-3, normalize=True)
    scaled = estimator.projected_gradients(1024 * losses)
    torch.testing.assert_close(scaled, estimator.projected_gradients(losses))


def test_equal_losses_give_no_step() -> None:
    assert TwoSided(2, 1e-3, normalize=True).projected_gradients(torch.full((4,), 0.7)).tolist() == [0.0, 0.0]
    losses = torch.tensor([0.5, 0.7, 0.7])  # one_sided: the clean loss differs, the perturbed ones do not
    assert OneSided(2, 1e-3, normalize=True).projected_gradients(losses).tolist() == [0.0, 0.0]
    assert Centred(4, 1e-3, normalize=True).projected_gradients(torch.full((4,), 0.7)).tolist() == [0.0] * 4


def test_errors() -> None:
    with pytest.raises(ValueError, match="queries must be at least 1, got 0"):
        TwoSided(0, 1e-3)
    for eps in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"eps must be positive and finite in float32, got {eps}"):
            OneSided(1, eps)
    with pytest.raises(ValueError, match="normalize needs at least 2 queries"):
        OneSided(1, 1e-3, normalize=True)
    with pytest.raises(ValueError, match="queries must be at least 2 with the centred estimator, got 1"):
        Centred(1, 1e-3)
    with pytest.raises(ValueError, match="one of two_sided, one_sided, centred, got 'three_sided'"):
        make_estimator("three_sided", queries=1, eps=1e-3)
    with pytest.raises(ValueError, match=r"losses must have shape \[4\], got \[3\]"):
        TwoSided(2, 1e-3).projected_gradients(torch.zeros(3))
