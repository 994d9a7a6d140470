"""How well a model does on held-out rows, by the logits of its label words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mobizo_kernels.data import EncodedExample, collate, evaluation_batches
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training import metrics


@dataclass(frozen=True)
class Scored:
    """Held-out rows with the scores of their labels' words.

    Attributes:
        scores: logits of the words, float32 [n, C].
        labels: int [n], indices of words.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.integer]

    @property
    def losses(self) -> NDArray[np.float64]:
        """Cross-entropy of each row between the words, [n]."""
        return metrics.row_losses(self.scores, self.labels)

    @property
    def accuracy(self) -> float:
        """See :func:`mobizo_kernels.training.metrics.accuracy`, and so the next two."""
        return metrics.accuracy(self.scores, self.labels)

    @property
    def balanced_accuracy(self) -> float | None:
        """None unless every label has rows."""
        return metrics.balanced_accuracy(self.scores, self.labels)

    @property
    def auc(self) -> float | None:
        """None unless every label has rows."""
        return metrics.auc(self.scores, self.labels)


def score_rows(loss: LabelledLoss, rows: Sequence[EncodedExample], pad_token: int = 0) -> Scored:
    """Score rows by the words of their labels, whatever their answers are.

    Args:
        loss: of the model, with the words as its candidate tokens, in the order of the labels.
        rows: n of them, at least one; they are scored in batches of like length.
        pad_token: fills up rows.
    """
    batches = evaluation_batches(rows)
    parts = [loss.logits(collate([rows[row] for row in batch], pad_token)).cpu() for batch in batches]
    order = np.argsort(list(itertools.chain.from_iterable(batches)))
    labels = np.array([row.label for row in rows], dtype=np.int64)
    return Scored(torch.cat(parts).numpy()[order], labels)
