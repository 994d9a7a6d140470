"""Zeroth-order optimization: estimators and the step."""

from mobizo_kernels.zo.estimators import Estimator, OneSided, TwoSided, make_estimator
from mobizo_kernels.zo.parameters import tuned_parameters
from mobizo_kernels.zo.zeroth_order import StepOutput, ZerothOrder

__all__ = [
    "Estimator",
    "OneSided",
    "StepOutput",
    "TwoSided",
    "ZerothOrder",
    "make_estimator",
    "tuned_parameters",
]
