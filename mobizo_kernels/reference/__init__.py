"""Plain numpy and torch twins of the ops: slow, readable, the truth that every backend is tested against."""

from mobizo_kernels.reference.mp_lora import mp_lora, mp_lora_stacked, stack_b
from mobizo_kernels.reference.mp_outer import mp_outer
from mobizo_kernels.reference.noise import fma, noise, philox, splitmix64
from mobizo_kernels.reference.perturb import foreach_perturb, perturb
from mobizo_kernels.reference.zo_adam import zo_adam
from mobizo_kernels.reference.zo_momentum import zo_momentum
from mobizo_kernels.reference.zo_sign import zo_sign
from mobizo_kernels.reference.zo_update import zo_update

__all__ = [
    "fma",
    "foreach_perturb",
    "mp_lora",
    "mp_lora_stacked",
    "mp_outer",
    "noise",
    "perturb",
    "philox",
    "splitmix64",
    "stack_b",
    "zo_adam",
    "zo_momentum",
    "zo_sign",
    "zo_update",
]
