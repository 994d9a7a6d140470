"""How well a model does on held-out rows: the logits of its label words, and what they are worth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mobizo_kernels.data import EncodedExample, collate, evaluation_batches
from mobizo_kernels.errors import InputError
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training import metrics


@dataclass(frozen=True)
class Scored:
    """Held-out rows with the logits of the label words, float32 [n, C], and the labels, int [n]."""

    scores: NDArray[np.float32]
    labels: NDArray[np.integer]


def label_scores(
    loss: LabelledLoss, examples: Sequence[EncodedExample], pad_token: int
) -> NDArray[np.float32]:
    """The logits of the label words behind each prompt, [examples, labels]; the answers are not looked at."""
    batches = evaluation_batches(examples)
    parts = [loss.logits(collate([examples[row] for row in rows], pad_token)).cpu() for rows in batches]
    return torch.cat(parts).numpy()[np.argsort(list(itertools.chain.from_iterable(batches)))]


def label_targets(examples: Sequence[EncodedExample]) -> NDArray[np.int64]:
    """The index of each example's label, [examples]."""
    return np.array([example.label for example in examples], dtype=np.int64)


def quality(scores: NDArray[np.float32], targets: NDArray[np.integer]) -> dict[str, float | None]:
    """accuracy, balanced_accuracy and auc of scores on held-out rows.

    Raises:
        InputError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise InputError("model: its scores are not finite; a --dtype of wider range may help")
    return {
        "accuracy": metrics.accuracy(scores, targets),
        "balanced_accuracy": metrics.balanced_accuracy(scores, targets),
        "auc": metrics.auc(scores, targets),
    }


def quality_before(test: Scored, known: Scored) -> dict[str, float | None]:
    """How good the untuned model is on `test`, as it is and with the bias that `known` rows ask for, if every
    label is among them.

    Raises:
        InputError: a score is not finite.
    """
    found = quality(test.scores, test.labels)
    bias = metrics.fit_bias(known.scores, known.labels)
    return {
        "accuracy_before": found["accuracy"],
        "balanced_accuracy_before": found["balanced_accuracy"],
        "calibrated_accuracy_before": (
            None if bias is None else metrics.accuracy(test.scores + bias, test.labels)
        ),
        "auc_before": found["auc"],
    }
