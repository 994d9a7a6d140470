"""Zeroth-order optimization: seeds, estimators, optimizers, the loss of groups, the step, and the journal."""

from mobizo_kernels.zo.estimators import Estimator, OneSided, TwoSided, make_estimator
from mobizo_kernels.zo.journal import JournalHeader, JournalParameter, JournalWriter, read_journal
from mobizo_kernels.zo.loss import LabelledLoss
from mobizo_kernels.zo.optimizers import ZOSGD
from mobizo_kernels.zo.replay import replay, tuned_adapters
from mobizo_kernels.zo.seeds import query_seed, query_seeds
from mobizo_kernels.zo.zeroth_order import StepOutput, ZerothOrder, tuned_parameters

__all__ = [
    "ZOSGD",
    "Estimator",
    "JournalHeader",
    "JournalParameter",
    "JournalWriter",
    "LabelledLoss",
    "OneSided",
    "StepOutput",
    "TwoSided",
    "ZerothOrder",
    "make_estimator",
    "query_seed",
    "query_seeds",
    "read_journal",
    "replay",
    "tuned_adapters",
    "tuned_parameters",
]
