"""The learning rate of each step of a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim import lr_scheduler

# Of the share of the steps that was made.
_FACTORS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1.0 + math.cos(math.pi * done)) / 2,
}


def check_schedule(name: str) -> None:
    """Raise ValueError if there is no schedule of that name."""
    if name not in _FACTORS:
        raise ValueError(f"lr_schedule must be one of {', '.join(_FACTORS)}, got {name!r}")


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, name: str, steps: int, first: int = 0
) -> lr_scheduler.LambdaLR:
    """Sets lr * factor(t) for steps t from `first`; linear and cosine reach 0 after `steps` steps.

    The factor is a function of t alone, so that a resumed run goes on with exactly the same rates.

    Args:
        optimizer: its rate when the run begins is lr.
        name: "constant", "linear" or "cosine".
        steps: of the whole run.
        first: the step that comes next, in a run that is resumed.

    Raises:
        ValueError: if there is no schedule of that name.
    """
    check_schedule(name)
    factor = _FACTORS[name]
    return lr_scheduler.LambdaLR(optimizer, lambda step: factor((first + step) / steps))
