"""Update rules and their optimizers, and the seeds and records that make a step repeatable."""

from mobizo_kernels.optim.base import ZOOptimizer
from mobizo_kernels.optim.optimizers import ZOSGD, ZOAdam, ZOSign, make_optimizer
from mobizo_kernels.optim.records import Records, StepRecord
from mobizo_kernels.optim.seeds import query_seed, query_seeds
from mobizo_kernels.optim.update_rule import UpdateRule

__all__ = [
    "ZOSGD",
    "Records",
    "StepRecord",
    "UpdateRule",
    "ZOAdam",
    "ZOOptimizer",
    "ZOSign",
    "make_optimizer",
    "query_seed",
    "query_seeds",
]
