"""The native logistic regression against scikit-learn's and against that of `training.readout`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from mobizo_kernels.executorch._library import load_trainer
from mobizo_kernels.training.logistic import RIDGES, _principal_axes, _solved, row_losses
from mobizo_kernels.training.logistic import States as TheirStates

States = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]


class Head:
    """What the twin asks of a model's LM head."""

    def __init__(self, scale: float, soft_cap: float) -> None:
        self.scale, self.soft_cap = scale, soft_cap

    def finished(self, outputs: torch.Tensor) -> torch.Tensor:
        logits = outputs * self.scale
        return self.soft_cap * torch.tanh(logits / self.soft_cap) if self.soft_cap else logits


def states(rows: int, width: int, classes: int, rng: np.random.Generator, truth: Any, own: float) -> States:
    """Random hidden states, one of whose directions is much larger, outputs of the size `own`, and labels."""
    hidden = rng.standard_normal((rows, width))
    hidden[:, width // 2] *= 20
    scores = hidden @ truth.T + rng.gumbel(size=(rows, classes))
    labels = scores.argmax(axis=1)
    labels[:classes] = range(classes)
    outputs = own * rng.standard_normal((rows, classes))
    return hidden.astype(np.float32), outputs.astype(np.float32), labels.astype(np.int32)


def problem(rows: int, width: int, classes: int, own: float) -> tuple[States, States]:
    rng = np.random.default_rng([rows, width, classes])
    truth = rng.standard_normal((classes, width)) / np.sqrt(width)
    truth[:, width // 2] /= 20
    return states(rows, width, classes, rng, truth, own), states(rows + 30, width, classes, rng, truth, own)


def _as_theirs(states: States) -> TheirStates:
    hidden, outputs, labels = (torch.from_numpy(array) for array in states)
    weights = torch.from_numpy(weights_of(states[2]))
    return TheirStates(hidden.double(), outputs.double(), labels.long(), weights)


def regress(seen: States, held_out: States, scale: float = 1.0, soft_cap: float = 0.0) -> Any:
    """ridge, losses, what is added to the head's rows [C, H], words [C, r], directions [r, H]."""
    return load_trainer().regress(*seen, *held_out, scale, soft_cap)


def weights_of(labels: NDArray[np.int32]) -> NDArray[np.float64]:
    counts = np.bincount(labels)
    return 1 / (len(counts) * counts[labels])


@pytest.mark.parametrize(("rows", "width", "classes"), [(90, 17, 2), (41, 67, 3), (203, 33, 8), (64, 1, 2)])
def test_it_is_that_of_scikit_learn(rows: int, width: int, classes: int) -> None:
    """Where the head gives nothing by itself, which scikit-learn cannot begin from."""
    seen, held_out = problem(rows, width, classes, own=0.0)
    ridge, losses, added, *_ = regress(seen, held_out)
    hidden = seen[0].astype(np.float64)
    spread = hidden.std(axis=0)
    hidden /= spread
    assert ridge is not None and losses[0][0] is None
    penalty = ridge * (hidden**2).mean()
    # With two classes scikit-learn has one vector, of which each half has a quarter of its penalty.
    strength = (1 if classes > 2 else 2) / penalty
    judge = LogisticRegression(C=strength, fit_intercept=False, tol=1e-12, max_iter=100_000)
    judge.fit(hidden, seen[2], sample_weight=weights_of(seen[2]))
    expected = judge.coef_ if classes > 2 else np.stack([-judge.coef_[0], judge.coef_[0]]) / 2
    expected = (expected - expected.mean(axis=0)) / spread
    np.testing.assert_allclose(added, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("scale", "soft_cap"), [(1.0, 0.0), (0.25, 0.0), (1.0, 9.0)], ids=["plain", "scaled", "capped"]
)
@pytest.mark.parametrize(("rows", "width", "classes"), [(75, 19, 2), (41, 67, 3), (150, 35, 8)])
def test_it_is_that_of_the_twin(rows: int, width: int, classes: int, scale: float, soft_cap: float) -> None:
    seen, held_out = problem(rows, width, classes, own=0.5)
    ridge, losses, added, words, directions = regress(seen, held_out, scale, soft_cap)
    head: Any = Head(scale, soft_cap)
    theirs = [_as_theirs(seen), _as_theirs(held_out)]
    scales = 1 / theirs[0].inputs.std(dim=0, correction=0)
    theirs = [replace(states, inputs=states.inputs * scales) for states in theirs]
    axes, square = _principal_axes(theirs[0]), theirs[0].inputs.square().mean().item()
    expected = torch.zeros(classes, width, dtype=torch.float64)
    assert losses[0] == (None, pytest.approx(row_losses(head, theirs[1], expected).sum().item(), rel=1e-12))
    for (tried, loss), wanted in zip(losses[1:], RIDGES, strict=False):
        assert tried == pytest.approx(wanted, rel=1e-15)
        expected = _solved(head, theirs[0], axes, wanted * square, expected)
        assert loss == pytest.approx(row_losses(head, theirs[1], expected).sum().item(), rel=1e-6)
        if tried == ridge:  # with a cap and weaker ones there may be several optima
            ours = added / scales.numpy()
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
            break
    best = min(range(len(losses)), key=lambda number: losses[number][1])
    assert losses[best][0] == ridge and len(losses) in (best + 4, 1 + len(RIDGES))
    assert words.shape == (classes, classes if soft_cap else classes - 1)
    assert words.dtype == directions.dtype == np.float32
    np.testing.assert_allclose(directions @ directions.T, np.eye(len(directions)), rtol=0, atol=1e-5)
    np.testing.assert_allclose(words @ directions, added, rtol=0, atol=1e-6 * np.abs(added).max())
    sizes = np.linalg.norm(words, axis=0)
    np.testing.assert_allclose(sizes, np.linalg.svd(added)[1][: len(sizes)], rtol=1e-5)


def test_labels_that_nothing_tells_get_nothing() -> None:
    seen, held_out = problem(300, 9, 3, own=0.0)
    ridge, losses, added, words, directions = regress(seen, (-held_out[0], *held_out[1:]))
    assert ridge is None and len(losses) == 4 and not added.any()
    assert words.shape == (3, 0) and directions.shape == (0, 9)
