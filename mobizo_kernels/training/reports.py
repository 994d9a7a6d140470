"""What a run reports: of a step, of a validation, and of all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from mobizo_kernels.zo import StepOutput


@dataclass(frozen=True)
class StepReport(StepOutput):
    """A step that :func:`mobizo_kernels.training.fit` made, with what :class:`StepOutput` has.

    Attributes:
        lr: learning rate.
        seconds: that the step took.
        unsteady: the loss has run away, see :class:`DivergenceGuard`.
    """

    lr: float
    seconds: float
    unsteady: bool


class HeldOut(Protocol):
    """Held-out rows that were scored, as a validation needs them."""

    @property
    def losses(self) -> Any:
        """Of each row, float [n], always of the same rows."""

    @property
    def accuracy(self) -> float | None:
        """Share of rows whose label has the highest score; None of rows without labels."""

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the accuracy over the labels; None unless every label has rows."""


@dataclass(frozen=True)
class Validation:
    """The validation rows after `step` steps.

    Attributes:
        step: steps behind the parameters, from 0.
        loss: mean cross-entropy between the label words, or over the tokens of free answers.
        accuracy: share of rows whose label has the highest score; None of free answers.
        balanced_accuracy: mean of the accuracy over the labels; None unless every label has rows.
    """

    step: int
    loss: float
    accuracy: float | None
    balanced_accuracy: float | None


@dataclass
class FitResult:
    """A run of :func:`mobizo_kernels.training.fit`.

    Attributes:
        losses: of each step, those applied from a journal included; what is not finite is there, too.
        seconds: of each step that was made.
        validations: all of them, in order.
        best_step: steps behind the parameters that the model has now.
        skipped_steps: steps without an update, for a loss was not finite.
        stopped: before the last of the steps, for the loss ran away, the journal was lost, or `stop` said so.
        interrupted: `stop` said so.
        lost: what befell the journal; empty if nothing did. Parameters that were kept are in the model.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    best_step: int = 0
    skipped_steps: int = 0
    stopped: bool = False
    interrupted: bool = False
    lost: str = ""
