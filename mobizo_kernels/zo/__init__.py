"""Zeroth-order optimization: estimators and the step."""

from mobizo_kernels.zo.arguments import make_estimator, make_rule
from mobizo_kernels.zo.estimators import Centred, Estimator, OneSided, TwoSided
from mobizo_kernels.zo.parameters import tuned_parameters
from mobizo_kernels.zo.zeroth_order import StepOutput, ZerothOrder

__all__ = [
    "Centred",
    "Estimator",
    "OneSided",
    "StepOutput",
    "TwoSided",
    "ZerothOrder",
    "make_estimator",
    "make_rule",
    "tuned_parameters",
]
