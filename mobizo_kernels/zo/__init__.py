"""Zeroth-order optimization: estimators and the step."""

from mobizo_kernels.zo.arguments import make_estimator, make_rule
from mobizo_kernels.zo.estimators import Centred, Estimator, OneSided, TwoSided
from mobizo_kernels.zo.objective import Objective, Shaping
from mobizo_kernels.zo.outputs import GroupLosses, StepOutput
from mobizo_kernels.zo.parameters import tuned_parameters
from mobizo_kernels.zo.workers import RankFailed, RanksDisagree
from mobizo_kernels.zo.zeroth_order import ZerothOrder

__all__ = [
    "Centred",
    "Estimator",
    "GroupLosses",
    "Objective",
    "OneSided",
    "RankFailed",
    "RanksDisagree",
    "Shaping",
    "StepOutput",
    "TwoSided",
    "ZerothOrder",
    "make_estimator",
    "make_rule",
    "tuned_parameters",
]
