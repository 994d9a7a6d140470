"""Which of the adapters that a run validates is kept."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

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
