"""Zeroth-order optimization: estimators and the step."""

from mobizo_kernels.zo.estimators import Estimator, OneSided, TwoSided, make_estimator
from mobizo_kernels.zo.parameters import tuned_parameters
from mobizo_kernels.zo.selection import Selection
from mobizo_kernels.zo.steadiness import Steadiness
from mobizo_kernels.zo.zeroth_order import StepOutput, ZerothOrder

__all__ = [
    "Estimator",
    "OneSided",
    "Selection",
    "Steadiness",
    "StepOutput",
    "TwoSided",
    "ZerothOrder",
    "make_estimator",
    "tuned_parameters",
]
