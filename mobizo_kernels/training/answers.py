"""How well a model does on held-out rows whose answers are free text, by the tokens of these answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mobizo_kernels.data import EncodedExample, collate, evaluation_batches
from mobizo_kernels.loss import LabelledLoss


@dataclass(frozen=True)
class ScoredAnswers:
    """Held-out rows with the losses of their answers.

    Attributes:
        sums: cross-entropy over the tokens of each answer, float64 [n].
        tokens: of each answer, int64 [n].
    """

    sums: NDArray[np.float64]
    tokens: NDArray[np.int64]

    accuracy = None
    balanced_accuracy = None

    @property
    def losses(self) -> NDArray[np.float64]:
        """What each row has in the loss, [n]: their mean is :attr:`loss`."""
        return self.sums / self.tokens.mean()

    @property
    def loss(self) -> float:
        """Mean cross-entropy of all tokens of the answers."""
        return float(self.sums.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """exp of the loss; infinite where that is too large."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def score_answers(loss: LabelledLoss, rows: Sequence[EncodedExample], pad_token: int = 0) -> ScoredAnswers:
    """Score rows by the tokens of their answers.

    Args:
        loss: of the model, without candidate tokens.
        rows: n of them, at least one; they are scored in batches of like length.
        pad_token: fills up rows.
    """
    sums = np.zeros(len(rows))
    for batch in evaluation_batches(rows):
        found, where = loss.of_tokens(collate([rows[row] for row in batch], pad_token))
        total = torch.zeros(len(batch), dtype=torch.float64, device="cpu")
        sums[batch] = total.index_add_(0, where.cpu(), found.cpu().double()).numpy()
    return ScoredAnswers(sums, np.array([row.targets for row in rows], dtype=np.int64))
