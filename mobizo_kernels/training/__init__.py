"""A run around its steps: the loop, the rates, which adapter is kept, when to stop, and how good it is."""

from mobizo_kernels.training.curve import Curve, finite_or_none
from mobizo_kernels.training.divergence import DivergenceGuard
from mobizo_kernels.training.loop import tune
from mobizo_kernels.training.schedule import learning_rate_schedule
from mobizo_kernels.training.scoring import Scored, label_scores, label_targets, quality, quality_before
from mobizo_kernels.training.selection import Selection

__all__ = [
    "Curve",
    "DivergenceGuard",
    "Scored",
    "Selection",
    "finite_or_none",
    "label_scores",
    "label_targets",
    "learning_rate_schedule",
    "quality",
    "quality_before",
    "tune",
]
