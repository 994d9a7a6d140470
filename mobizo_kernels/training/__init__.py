"""A run around its steps: the loop, the rates, which adapter is kept, when to stop, and how good it is."""

from mobizo_kernels.training.answers import ScoredAnswers, score_answers
from mobizo_kernels.training.divergence import DivergenceGuard
from mobizo_kernels.training.fit import fit
from mobizo_kernels.training.readout import Readout, readout, rows_in_turn
from mobizo_kernels.training.reports import FitResult, HeldOut, StepReport, Validation
from mobizo_kernels.training.schedule import learning_rate_schedule
from mobizo_kernels.training.scoring import Scored, score_rows
from mobizo_kernels.training.selection import Keeper, Selection
from mobizo_kernels.training.writing import WrittenAnswers, write_answers

__all__ = [
    "DivergenceGuard",
    "FitResult",
    "HeldOut",
    "Keeper",
    "Readout",
    "Scored",
    "ScoredAnswers",
    "Selection",
    "StepReport",
    "Validation",
    "WrittenAnswers",
    "fit",
    "learning_rate_schedule",
    "readout",
    "rows_in_turn",
    "score_answers",
    "score_rows",
    "write_answers",
]
