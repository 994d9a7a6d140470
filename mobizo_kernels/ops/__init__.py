"""The ops, `torch.ops.mobizo.*`, with their Python faces. Kernels come from the compiled extension."""

from mobizo_kernels import _library  # noqa: F401  (first: it registers the schemas that the fakes below attach to)
from mobizo_kernels.ops import _cuda  # noqa: F401
from mobizo_kernels.ops.mp_lora import mp_lora, mp_lora_, mp_lora_linear
from mobizo_kernels.ops.noise import noise
from mobizo_kernels.ops.perturb import foreach_perturb_, perturb_
from mobizo_kernels.ops.streams import parameter_stream
from mobizo_kernels.ops.zo_update import zo_update

__all__ = [
    "foreach_perturb_",
    "mp_lora",
    "mp_lora_",
    "mp_lora_linear",
    "noise",
    "parameter_stream",
    "perturb_",
    "zo_update",
]
