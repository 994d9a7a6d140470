"""How good scores are: accuracy, balanced accuracy and AUC, and the bias that undoes a model's liking for a
word.

Scores are float [n, C], one column for each label; targets are int [n], indices of labels.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

_SWEEPS = 3


def accuracy(scores: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    """Share of rows whose highest score is that of their label."""
    return float(accuracy_score(targets, scores.argmax(axis=1)))


def balanced_accuracy(scores: NDArray[np.floating], targets: NDArray[np.integer]) -> float | None:
    """Mean over the labels of the accuracy on the rows of each; None unless every label has rows."""
    if not _complete(scores, targets):
        return None
    return float(balanced_accuracy_score(targets, scores.argmax(axis=1)))


def auc(scores: NDArray[np.floating], targets: NDArray[np.integer]) -> float | None:
    """Area under the ROC curve of the score difference, the mean over all pairs of labels (as Hand and Till,
    2001, have it for many); None unless every label has rows.
    """
    if not _complete(scores, targets):
        return None
    areas = []
    for first, second in combinations(range(scores.shape[1]), 2):
        rows = (targets == first) | (targets == second)
        differences = scores[rows, second] - scores[rows, first]
        areas.append(roc_auc_score(targets[rows] == second, differences))
    return float(np.mean(areas))


def row_losses(scores: NDArray[np.floating], targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """-log softmax(scores [n, C]) at the targets [n]."""
    losses = F.cross_entropy(
        torch.from_numpy(scores.astype(np.float64)), torch.from_numpy(targets), reduction="none"
    )
    return losses.numpy()


def fit_bias(scores: NDArray[np.floating], targets: NDArray[np.integer]) -> NDArray[np.float64] | None:
    """The bias [C] that, added to the scores, gives the best balanced accuracy on these rows.

    With two labels it is the best threshold on their score difference. With more, one bias at a time is set
    to its best value given the others, a few times over. None unless every label has rows.

    Zero-shot with this bias is the baseline to compare tuning with: a model that likes one word too much
    gains by merely losing that preference.
    """
    if not _complete(scores, targets):
        return None
    scores = scores.astype(np.float64)
    labels = scores.shape[1]
    weights = 1.0 / np.bincount(targets, minlength=labels)[targets]
    bias = np.zeros(labels)
    for _ in range(_SWEEPS):
        for label in range(1, labels):
            others = np.delete(scores + bias, label, axis=1)
            rival = np.delete(np.arange(labels), label)[others.argmax(axis=1)]
            needed = others.max(axis=1) - scores[:, label]  # the row goes to `label` from this bias on
            order = needed.argsort()
            # What the balanced accuracy gains as the bias rises past each row.
            gains = weights * ((targets == label).astype(float) - (targets == rival))
            best = np.concatenate(([0.0], gains[order].cumsum())).argmax()
            edges = np.concatenate(([needed.min() - 1], needed[order], [needed.max() + 1]))
            bias[label] = (edges[best] + edges[best + 1]) / 2
    return bias


def _complete(scores: NDArray[np.floating], targets: NDArray[np.integer]) -> bool:
    """Whether every label has rows."""
    return len(np.unique(targets)) == scores.shape[1]
