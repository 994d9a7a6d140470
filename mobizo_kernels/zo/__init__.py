"""Zeroth-order optimization: seeds, estimators, optimizers, the loss of groups, the step, and the journal."""

from mobizo_kernels.zo.base_optimizer import ZOOptimizer
from mobizo_kernels.zo.estimators import Estimator, OneSided, TwoSided, make_estimator
from mobizo_kernels.zo.journal import JournalWriter, read_journal
from mobizo_kernels.zo.journal_file import JournalLost
from mobizo_kernels.zo.journal_header import JournalHeader, JournalParameter
from mobizo_kernels.zo.loss import LabelledLoss
from mobizo_kernels.zo.optimizers import ZOSGD, ZOAdam, ZOSign, make_optimizer
from mobizo_kernels.zo.parameters import tuned_parameters
from mobizo_kernels.zo.records import Records, StepRecord
from mobizo_kernels.zo.replay import replay, tuned_adapters
from mobizo_kernels.zo.rules import UpdateRule
from mobizo_kernels.zo.seeds import query_seed, query_seeds
from mobizo_kernels.zo.selection import Selection
from mobizo_kernels.zo.steadiness import Steadiness
from mobizo_kernels.zo.zeroth_order import StepOutput, ZerothOrder

__all__ = [
    "ZOSGD",
    "Estimator",
    "JournalHeader",
    "JournalLost",
    "JournalParameter",
    "JournalWriter",
    "LabelledLoss",
    "OneSided",
    "Records",
    "Selection",
    "Steadiness",
    "StepOutput",
    "StepRecord",
    "TwoSided",
    "UpdateRule",
    "ZOAdam",
    "ZOOptimizer",
    "ZOSign",
    "ZerothOrder",
    "make_estimator",
    "make_optimizer",
    "query_seed",
    "query_seeds",
    "read_journal",
    "replay",
    "tuned_adapters",
    "tuned_parameters",
]
