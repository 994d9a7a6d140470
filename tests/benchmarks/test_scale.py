"""What a step of many ranks is worth: the formula against estimates that were drawn."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scale.workers import Measured, best, plan

MEASURED = Measured(parameters=40, rows=2, steps=[1.0, 2.0], direction=0.01, exchanges={2: 0.001})


@pytest.mark.parametrize(("ranks", "query_ranks"), [(1, 1), (4, 4), (6, 2)])
def test_the_worth_is_that_of_estimates(ranks: int, query_ranks: int) -> None:
    noise = 9.0
    found = plan(MEASURED, ranks, query_ranks, 3, noise)
    rng, draws, d = np.random.default_rng(0), 20_000, MEASURED.parameters
    gradient = np.ones(d) / np.sqrt(d)
    batch = gradient + rng.normal(size=(draws, d)) * np.sqrt(noise / d / found.rows)
    signs = rng.choice([-1.0, 1.0], (found.queries, draws, d))
    estimate = np.mean([z * (z * batch).sum(axis=1, keepdims=True) for z in signs], axis=0)
    assert found.worth == pytest.approx(1 / np.square(estimate).sum(axis=1).mean(), rel=0.03)


def test_a_step_is_that_of_the_slowest_rank() -> None:
    one, many = (plan(MEASURED, ranks, ranks, 3, 9.0) for ranks in (1, 1000))
    assert one.seconds in (pytest.approx(2.97 + 0.03 + 0.0), pytest.approx(5.97 + 0.03))
    assert many.seconds == pytest.approx(3 * 1.99 + 3000 * 0.01 + 999 * 0.001)
    assert (many.queries, many.rows, many.sent, many.received) == (3000, 2, 96, 96_000)
    assert best(MEASURED, 6, 3, 0.0).query_ranks == 6
