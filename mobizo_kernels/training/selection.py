"""Which of the adapters that a run validates is kept, and how it comes back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from mobizo_kernels.zo import tuned_parameters

DEVIATIONS = 2.0
"""How many standard errors above the lowest loss a later adapter's may be."""


class Selection:
    """The latest adapter that is not significantly worse than the best so far.

    A few hundred rows do not tell good adapters apart. Where they do not, the later one is the better guess:
    it has seen more and ends on a lower learning rate. An adapter that they do tell to be worse is not kept,
    so a run that gets lost brings back what it had. Two adapters are compared row by row: what makes a row
    hard is hard for both and drops out of the standard error of their difference.

    Attributes:
        lowest: whether the losses that were taken last are the lowest so far.
    """

    def __init__(self) -> None:
        self.lowest = False
        self._lowest: np.ndarray | None = None

    def keep(self, losses: ArrayLike) -> bool:
        """Take the losses of the validation rows, [n], always the same rows; whether to keep this adapter."""
        rows = np.asarray(losses, dtype=np.float64)
        finite = math.isfinite(rows.sum())
        self.lowest = finite and (self._lowest is None or bool(rows.mean() < self._lowest.mean()))
        if self.lowest:
            self._lowest = rows
        if not finite or self._lowest is None:
            return False
        excess = rows - self._lowest
        error = excess.std(ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else 0.0
        return bool(excess.mean() <= DEVIATIONS * error)


@dataclass(frozen=True)
class _Copy:
    """Tuned parameters as they were at a validation."""

    validation: int
    parameters: list[torch.Tensor]


class Keeper:
    """Holds copies of the tuned parameters as they were when :class:`Selection` kept them last, and when
    their loss was the lowest.

    Args:
        model: of which they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._selection = Selection()
        self._parameters = [parameter for _, parameter in tuned_parameters(model)]
        self._validations = 0
        self._kept: _Copy | None = None
        self._lowest: _Copy | None = None

    def offer(self, losses: ArrayLike) -> bool:
        """Take the losses of the validation rows as :meth:`Selection.keep` does; whether the parameters are
        kept as they are now.
        """
        kept = self._selection.keep(losses)
        if kept:
            copies = [parameter.detach().clone() for parameter in self._parameters]
            self._kept = _Copy(self._validations, copies)
        if self._selection.lowest:
            self._lowest = self._kept
        self._validations += 1
        return kept

    @torch.no_grad()
    def restore(self, *, lowest: bool = False) -> int | None:
        """Bring back what was kept last, or had the lowest loss.

        Args:
            lowest: the latter, for a run whose loss ran away. Few rows don't tell its last parameters to be
                worse.

        Returns:
            The number of the validation, from 0, at which the parameters were so; None if none was finite.
        """
        copy = self._lowest if lowest else self._kept
        if copy is None:
            return None
        for parameter, value in zip(self._parameters, copy.parameters, strict=True):
            parameter.copy_(value)
        return copy.validation
