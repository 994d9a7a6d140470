"""What the native trainer reports of a step, of a validation, and of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepReport:
    """One step of :meth:`~mobizo_kernels.executorch.Trainer.train`.

    Attributes:
        step: from 0.
        loss: of the model before the step's update.
        losses: of each group, float32 [G].
        projected_gradients: float32 [q]; NaN if the step was skipped.
        update_norm: L2 norm of the update that the forward of this step applied first, the one before it.
        lr: learning rate.
        seconds: that the step took.
        skipped: a loss was not finite, so nothing is updated.
        unsteady: the loss has run away, see :class:`mobizo_kernels.training.DivergenceGuard`.
    """

    step: int
    loss: float
    losses: NDArray[np.float32]
    projected_gradients: NDArray[np.float32]
    update_norm: float
    lr: float
    seconds: float
    skipped: bool
    unsteady: bool


@dataclass(frozen=True)
class Validation:
    """The validation rows after `step` steps: mean cross-entropy, accuracy, and its mean over the labels, NaN
    as in :class:`EvaluationResult`.
    """

    step: int
    loss: float
    accuracy: float
    balanced_accuracy: float


@dataclass(frozen=True)
class TrainResult:
    """A run of :meth:`~mobizo_kernels.executorch.Trainer.train`.

    Attributes:
        steps: in all; fewer than planned if the run was stopped.
        stopped: because the loss ran away, or the journal was lost.
        resumed_steps: of these, applied from the journal.
        skipped_steps: of those made now.
        best_step: steps behind the adapter that was kept.
        evaluations: every validation.
    """

    steps: int
    stopped: bool
    resumed_steps: int
    skipped_steps: int
    best_step: int
    evaluations: list[Validation]


@dataclass(frozen=True)
class Readout:
    """What :meth:`~mobizo_kernels.executorch.Trainer.read_out` found.

    Attributes:
        ridge: that validated best, in units of the scaled states' mean square; None if the model as it was
            did, and the head got no adapter.
        rank: of the head's adapter, 0 without one.
        losses: the validation loss of each ridge that was tried; with None that of the model as it was.
        rows: that it was made of.
        seconds: that it took.
    """

    ridge: float | None
    rank: int
    losses: dict[float | None, float]
    rows: int
    seconds: float


@dataclass(frozen=True)
class EvaluationResult:
    """The rows of a split, scored.

    Attributes:
        rows: how many.
        loss: mean cross-entropy over all tokens to predict.
        accuracy: share of rows whose last token is predicted.
        balanced_accuracy: mean of the accuracy over the labels; NaN if rows have none, or a label of the
            program has no rows.
        labels: int32 [rows], -1 for none.
        scores: logits at each row's last target, float32 [rows, C], of the C candidate tokens in their order,
            or of the vocabulary; [0, C] if they were not asked for.
    """

    rows: int
    loss: float
    accuracy: float
    balanced_accuracy: float
    labels: NDArray[np.int32]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class GenerationResult:
    """What a program wrote.

    Attributes:
        tokens: of the answer, the one that ends it included.
        ended: why it ends: "stop", by one of the program's stop tokens; "length", as many as asked for;
            "context", no room for more.
        reused: tokens of the prompt that were in the key-value cache.
        prefilled: the others.
        prefill_seconds: until the first token of the answer was known.
        decode_seconds: for those behind it.
    """

    tokens: tuple[int, ...]
    ended: str
    reused: int
    prefilled: int
    prefill_seconds: float
    decode_seconds: float
