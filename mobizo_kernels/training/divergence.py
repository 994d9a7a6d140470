"""Whether a run's loss runs away: too long a step has led to where the slope tells nothing any more."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

WINDOW = 20
"""Steps that the mean of recent losses looks back on, and that pass before it is trusted."""

DEVIATIONS = 3.0
"""How far above its lowest value, in standard deviations of a single loss, the mean may rise."""

RISE = 1.5
"""How much of the first validation's loss a later one may have."""

ROOM = 0.1
"""How far a validation's loss may rise in any case: beside a small first one any noise is a large share."""


@dataclass
class DivergenceGuard:
    """The mean of a run's recent losses, and how far it is above its lowest value.

    The mean is exponential, over about `WINDOW` steps. A run is unsteady when the mean is more than a tenth
    and more than `DEVIATIONS` standard deviations of a single loss above the lowest it has been, or when
    `WINDOW` steps in a row were skipped. The standard deviation is the largest that was seen at a lowest
    mean, so neither other batches nor a single loss far off is taken for a loss that runs away. It is also
    unsteady when the loss on rows that stay the same, those of validations, is half again what it first was
    and `ROOM` above it: that shows what a run that began with too long a step hides.

    The same losses give the same answers, so a run that is resumed from its journal ends where it would have.

    Attributes:
        steps: losses that were finite.
        mean: of the recent losses.
        lowest: that the mean was after a step.
        skipped: steps in a row, up to the last, that were skipped.
        first_validation: loss of the first validation.
    """

    steps: int = 0
    mean: float = 0.0
    lowest: float = math.inf
    skipped: int = 0
    first_validation: float | None = None
    _variance: float = 0.0
    _deviation: float = 0.0

    def observe(self, loss: float, applied: bool) -> bool:
        """Take the loss of a step; whether the run is unsteady now.

        Args:
            loss: of the model before the step's update; it is rounded to float32, as a journal has it.
            applied: the step was not skipped.
        """
        loss = ctypes.c_float(loss).value
        self.skipped = 0 if applied else self.skipped + 1
        if math.isfinite(loss):
            self._take(loss)
        bound = max(DEVIATIONS * self._deviation, 0.1 * abs(self.lowest))
        return self.skipped >= WINDOW or self.mean - self.lowest > bound

    def validate(self, loss: float) -> bool:
        """Take the loss of a validation, first that of the untuned model; whether the run is unsteady now."""
        if self.first_validation is None:
            self.first_validation = loss
        if self.first_validation <= 0:  # of rewards: no share of it means anything
            return not math.isfinite(loss)
        return not loss <= max(RISE * self.first_validation, self.first_validation + ROOM)

    def __str__(self) -> str:
        return f"its mean is {self.mean:.4g} and was {self.lowest:.4g}; {self.skipped} steps in a row skipped"

    def _take(self, loss: float) -> None:
        self.steps += 1
        weight = max(1 / self.steps, 1 / WINDOW)
        ahead = loss - self.mean
        self.mean += weight * ahead
        self._variance += weight * (ahead * (loss - self.mean) - self._variance)
        if self.steps >= WINDOW and self.mean < self.lowest:
            self.lowest = self.mean
            self._deviation = max(self._deviation, math.sqrt(self._variance))
