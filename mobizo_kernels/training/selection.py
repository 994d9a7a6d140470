"""Which of the adapters that a run validates is kept, and how it comes back."""

from __future__ import annotations

import math

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
    """

    def __init__(self) -> None:
        self._lowest: np.ndarray | None = None

    def keep(self, losses: ArrayLike) -> bool:
        """Take the losses of the validation rows, [n], always the same rows; whether to keep this adapter."""
        rows = np.asarray(losses, dtype=np.float64)
        if not math.isfinite(rows.sum()):
            return False
        if self._lowest is None or rows.mean() < self._lowest.mean():
            self._lowest = rows
            return True
        excess = rows - self._lowest
        error = excess.std(ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else 0.0
        return bool(excess.mean() <= DEVIATIONS * error)


class Keeper:
    """Holds a copy of the tuned parameters as they were when :class:`Selection` kept them last.

    Args:
        model: of which they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._selection = Selection()
        self._parameters = [parameter for _, parameter in tuned_parameters(model)]
        self._kept: list[torch.Tensor] = []

    def offer(self, losses: ArrayLike) -> bool:
        """Take the losses of the validation rows as :meth:`Selection.keep` does; whether the parameters are
        kept as they are now.
        """
        kept = self._selection.keep(losses)
        if kept:
            self._kept = [parameter.detach().clone() for parameter in self._parameters]
        return kept

    @torch.no_grad()
    def restore(self) -> bool:
        """Bring back what was kept last; whether there is any."""
        for parameter, kept in zip(self._parameters, self._kept, strict=False):
            parameter.copy_(kept)
        return bool(self._kept)
