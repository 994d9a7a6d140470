"""What the step, and a look at its losses, give."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepOutput:
    """What one step saw and did.

    Attributes:
        step: its number, from 0.
        loss: of the model before the update, over the labelled tokens, or that of an objective.
        losses: float32 [G] on the CPU, one for each perturbed copy of the batch.
        projected_grads: float32 [q] on the CPU; NaN if the step was skipped.
        skipped: a loss, a difference of two, or a coefficient of the update was not finite, so nothing was
            updated.
    """

    step: int
    loss: float
    losses: torch.Tensor
    projected_grads: torch.Tensor
    skipped: bool


@dataclass(frozen=True)
class GroupLosses:
    """The losses of the perturbed copies of a batch.

    Attributes:
        losses: float32 [G] on the CPU, one for each perturbed copy.
        weight: what the mean that each of them is was taken over: the labelled tokens, or with an objective
            the rows.
    """

    losses: torch.Tensor
    weight: int
