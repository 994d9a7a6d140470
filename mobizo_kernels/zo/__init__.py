"""Zeroth-order optimization: estimators, the step, and the journal."""

from mobizo_kernels.zo.estimators import Estimator, OneSided, TwoSided, make_estimator
from mobizo_kernels.zo.journal import JournalWriter, read_journal
from mobizo_kernels.zo.journal_file import JournalLost
from mobizo_kernels.zo.journal_header import JournalHeader, JournalParameter
from mobizo_kernels.zo.parameters import tuned_parameters
from mobizo_kernels.zo.replay import replay, tuned_adapters
from mobizo_kernels.zo.selection import Selection
from mobizo_kernels.zo.steadiness import Steadiness
from mobizo_kernels.zo.zeroth_order import StepOutput, ZerothOrder

__all__ = [
    "Estimator",
    "JournalHeader",
    "JournalLost",
    "JournalParameter",
    "JournalWriter",
    "OneSided",
    "Selection",
    "Steadiness",
    "StepOutput",
    "TwoSided",
    "ZerothOrder",
    "make_estimator",
    "read_journal",
    "replay",
    "tuned_adapters",
    "tuned_parameters",
]
