"""One batch or several: what a step takes its losses over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from mobizo_kernels.loss import LabelledBatch, LabelledLoss
from mobizo_kernels.loss.rows import NothingLabelled
from mobizo_kernels.zo.objective import Objective, checked_losses

Batch = Mapping[str, torch.Tensor]
Measure = Callable[[int], torch.Tensor]
"""From a number of groups to the loss of each, float32 [groups] on the CPU."""


@dataclass(frozen=True)
class Measured:
    """What gives the loss of each group over all batches of a step, a :data:`Measure`.

    Attributes:
        measures: of each batch.
        weights: of each batch, labelled tokens or rows.
        batches: as they were given.
    """

    measures: Sequence[Measure]
    weights: Callable[[], list[int]]
    batches: Sequence[Batch]

    def __call__(self, groups: int) -> torch.Tensor:
        each = [checked_losses(measure(groups), groups) for measure in self.measures]
        if len(each) == 1:
            return each[0]
        weights = self.weights()
        total = sum(weight * part.double() for weight, part in zip(weights, each, strict=True))
        assert isinstance(total, torch.Tensor)
        return (total / sum(weights)).float()


def listed_batches(batch: Batch | Sequence[Batch]) -> list[Batch]:
    """The batches of a step. Raises ValueError if there is none, or something else than a mapping."""
    batches = [batch] if isinstance(batch, Mapping) else list(batch)
    if not batches:
        raise ValueError("batch must be a mapping of tensors, or a sequence of them, got an empty one")
    for one in batches:
        if not isinstance(one, Mapping):
            raise ValueError(f"batch must be a mapping of tensors, or a sequence of them, got {type(one)}")
    return batches


def losses_over(loss: LabelledLoss, batches: Sequence[Batch], objective: Objective | None) -> Measured:
    """What gives the loss of each group over all batches.

    The cross-entropies are weighted by labelled tokens, those of an objective by rows: the mean over the rows
    of all batches. Batches are forwarded one after the other, so that memory is that of the largest.

    Raises:
        ValueError: as :meth:`LabelledLoss.labelled`; a batch without labels is left out if another has some.
    """
    if objective is None:
        labelled = _labelled(loss, batches)
        measures: list[Measure] = [partial(loss.of_labelled, one) for one in labelled]
        return Measured(measures, lambda: [len(one.targets) for one in labelled], batches)
    measures = [partial(objective, loss.model, batch) for batch in batches]
    return Measured(measures, lambda: [_rows(batch) for batch in batches], batches)


def _labelled(loss: LabelledLoss, batches: Sequence[Batch]) -> list[LabelledBatch]:
    found, none = [], None
    for batch in batches:
        try:
            found.append(loss.labelled(batch))
        except NothingLabelled as error:
            none = error
    if not found:
        assert none is not None
        raise none
    return found


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))
