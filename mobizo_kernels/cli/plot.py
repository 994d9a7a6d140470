"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

Kind = Literal["labels", "answers", "reward"]

_WINDOWS = 20
_LOSSES = {
    "labels": "loss on the label words",
    "answers": "loss of the answers",
    "reward": "1 - mean reward",
}
_QUALITIES = {
    "labels": "balanced validation accuracy (%)",
    "answers": "validation perplexity",
    "reward": "mean reward on validation",
}


def plot_learning_curve(
    path: Path,
    losses: Sequence[float | None],
    validation: Sequence[dict[str, Any]],
    best_step: int,
    kind: Kind = "labels",
) -> None:
    """Draw the training loss and the validation accuracy over the steps into the PNG file `path`; where
    answers are free, their perplexity or reward in place of the accuracy.

    Args:
        path: of the picture.
        losses: of each step; None where it was not finite.
        validation: points with step, loss and balanced_accuracy, the last two None where there is none.
        best_step: where the adapter was kept, marked in the picture.
        kind: what the losses are of.
    """
    # Figure alone, without pyplot, needs no display and leaves no state behind.
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)

    steps = np.arange(1, len(losses) + 1)
    finite = np.array([np.nan if loss is None else loss for loss in losses])
    upper.plot(steps, finite, color="0.8", linewidth=0.8, label="training, each step")
    upper.plot(steps, _running_mean(finite), label="training, running mean")
    at = [point["step"] for point in validation]
    validation_losses = [np.nan if point["loss"] is None else point["loss"] for point in validation]
    upper.plot(at, validation_losses, "o-", markersize=3, label="validation")
    upper.set_ylabel(_LOSSES[kind])
    upper.legend()

    if kind == "labels":
        accuracies = [point["balanced_accuracy"] for point in validation]
        shown = np.array([np.nan if share is None else 100 * share for share in accuracies])
    else:
        found = np.array(validation_losses, dtype=np.float64)
        shown = np.exp(found) if kind == "answers" else 1 - found
    lower.plot(at, shown, "o-", markersize=3)
    lower.axvline(best_step, color="0.5", linestyle=":", label=f"kept: step {best_step}")
    lower.set_ylabel(_QUALITIES[kind])
    lower.set_xlabel("step")
    lower.legend()
    figure.savefig(path, dpi=120)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last twentieth of all steps up to each; what is not finite is left out."""
    window = max(1, len(values) // _WINDOWS)
    finite = np.isfinite(values)
    totals = np.concatenate(([0.0], np.where(finite, values, 0.0).cumsum()))
    counts = np.concatenate(([0], finite.cumsum()))
    first = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    last = np.arange(1, len(values) + 1)
    with np.errstate(invalid="ignore"):
        return (totals[last] - totals[first]) / (counts[last] - counts[first])
