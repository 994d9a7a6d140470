"""What a run has seen on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Curve:
    """What was seen on the way. A loss is None if it was not finite."""

    losses: list[float | None] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    validation: list[dict[str, float | None]] = field(default_factory=list)
    best_step: int = 0
    skipped_steps: int = 0
    stopped: bool = False
    lost: str = ""  # what befell the journal, so that the run ended


def finite_or_none(value: float) -> float | None:
    """What JSON can hold."""
    return value if math.isfinite(value) else None
