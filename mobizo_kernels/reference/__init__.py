"""Plain numpy and torch twins of the ops: slow, readable, the truth that every backend is tested against."""

from mobizo_kernels.reference.mp_lora import mp_lora, mp_lora_stacked, stack_b
from mobizo_kernels.reference.noise import fma, noise, philox, splitmix64
from mobizo_kernels.reference.perturb import foreach_perturb, perturb
from mobizo_kernels.reference.zo_update import zo_update

__all__ = [
    "fma",
    "foreach_perturb",
    "mp_lora",
    "mp_lora_stacked",
    "noise",
    "perturb",
    "philox",
    "splitmix64",
    "stack_b",
    "zo_update",
]
