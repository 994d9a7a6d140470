"""Metrics of scores, and the bias that calibrates them, against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mobizo_kernels.training import metrics

SCORES = np.array([[2.0, 1.0], [0.5, 1.0], [3.0, 0.0], [0.0, 0.1], [1.0, -1.0]], dtype=np.float32)
TARGETS = np.array([0, 0, 0, 1, 1])


def test_by_hand() -> None:
    assert metrics.accuracy(SCORES, TARGETS) == pytest.approx(3 / 5)
    assert metrics.balanced_accuracy(SCORES, TARGETS) == pytest.approx((2 / 3 + 1 / 2) / 2)
    # score[1] - score[0] is 0.1 and -2 for label 1; -1, 0.5 and -3 for label 0: 3 of 6 pairs are in order.
    assert metrics.auc(SCORES, TARGETS) == pytest.approx(3 / 6)
    losses = [np.log(np.exp(row).sum()) - row[target] for row, target in zip(SCORES, TARGETS, strict=True)]
    assert metrics.row_losses(SCORES, TARGETS) == pytest.approx(losses)


def test_rows_of_every_label_are_needed() -> None:
    assert metrics.auc(SCORES[:3], TARGETS[:3]) is None
    assert metrics.balanced_accuracy(SCORES[:3], TARGETS[:3]) is None
    assert metrics.fit_bias(SCORES[:3], TARGETS[:3]) is None
    assert metrics.auc(np.zeros((4, 3)), np.array([0, 1, 1, 0])) is None


def test_auc_of_many_labels_is_the_mean_over_pairs() -> None:
    scores = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 3.0], [1.0, -5.0, -1.5]])
    # Labels 0 and 1, and 1 and 2, are told apart in all rows; 0 and 2 in one pair of rows out of two.
    assert metrics.auc(scores, np.array([0, 1, 2, 2])) == pytest.approx((1.0 + 1.0 + 0.5) / 3)


def random_case(rng: torch.Generator, rows: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know a little and like the first label too much; every label occurs."""
    targets = torch.cat([torch.arange(labels), torch.randint(labels, (rows - labels,), generator=rng)])
    scores = torch.randn(rows, labels, generator=rng) + torch.nn.functional.one_hot(targets, labels)
    scores[:, 0] += 5.0
    return scores.numpy(), targets.numpy()


@pytest.mark.parametrize("rows", [2, 3, 8, 41])
def test_two_labels_get_the_best_threshold(rng: torch.Generator, rows: int) -> None:
    scores, targets = random_case(rng, rows, 2)
    differences = np.sort(scores[:, 0] - scores[:, 1])
    thresholds = np.concatenate(
        ([differences[0] - 1], (differences[1:] + differences[:-1]) / 2, [differences[-1] + 1])
    )
    best = max(metrics.balanced_accuracy(scores + [0, bias], targets) for bias in thresholds)
    fitted = metrics.balanced_accuracy(scores + metrics.fit_bias(scores, targets), targets)
    assert fitted == pytest.approx(best)


def test_more_labels_come_near_the_best_bias(rng: torch.Generator) -> None:
    scores, targets = random_case(rng, 60, 3)
    grid = np.linspace(-2, 10, 25)
    best = max(
        metrics.balanced_accuracy(scores + [0, a, b], targets) for a, b in itertools.product(grid, grid)
    )
    fitted = metrics.balanced_accuracy(scores + metrics.fit_bias(scores, targets), targets)
    assert fitted >= best - 0.02
    assert fitted > metrics.balanced_accuracy(scores, targets) + 0.1
