"""How good a model is on held-out rows, as the summaries of the commands have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mobizo_kernels.errors import InputError
from mobizo_kernels.training import Scored, metrics


@dataclass(frozen=True)
class Outcome:
    """Test rows after a run.

    Attributes:
        quality: figures by name.
        rows: how many there are.
        predictions: of each row, for metrics.json.
    """

    quality: dict[str, float | None]
    rows: int
    predictions: list[Any]


def outcome(test: Scored) -> Outcome:
    """That of rows with labels. Raises InputError as :func:`quality` does."""
    return Outcome(quality(test), len(test.labels), test.scores.argmax(axis=1).tolist())


def quality(scored: Scored) -> dict[str, float | None]:
    """accuracy, balanced_accuracy and auc of held-out rows.

    Raises:
        InputError: a score is not finite.
    """
    if not np.isfinite(scored.scores).all():
        raise InputError("model: its scores are not finite; a --dtype of wider range may help")
    return {
        "accuracy": scored.accuracy,
        "balanced_accuracy": scored.balanced_accuracy,
        "auc": scored.auc,
    }


def quality_before(test: Scored, known: Scored) -> dict[str, float | None]:
    """How good the untuned model is on `test`, as it is and with the bias that `known` rows ask for, if every
    label is among them.

    Raises:
        InputError: a score is not finite.
    """
    found = quality(test)
    bias = metrics.fit_bias(known.scores, known.labels)
    return {
        "accuracy_before": found["accuracy"],
        "balanced_accuracy_before": found["balanced_accuracy"],
        "calibrated_accuracy_before": (
            None if bias is None else metrics.accuracy(test.scores + bias, test.labels)
        ),
        "auc_before": found["auc"],
    }
