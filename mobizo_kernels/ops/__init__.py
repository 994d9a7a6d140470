"""The ops, `torch.ops.mobizo.*`, with their Python faces. Kernels come from the compiled extension."""

from mobizo_kernels import _library  # noqa: F401  (first: it registers the schemas that the fakes below attach to)
from mobizo_kernels.ops import _cuda, autocast, linear_traced, mp_lora_gradients, mp_lora_traced  # noqa: F401
from mobizo_kernels.ops.mp_lora import mp_lora, mp_lora_, mp_lora_linear
from mobizo_kernels.ops.mp_outer import mp_outer_
from mobizo_kernels.ops.noise import noise
from mobizo_kernels.ops.perturb import foreach_perturb_, perturb_
from mobizo_kernels.ops.streams import parameter_stream
from mobizo_kernels.ops.zo_adam import foreach_zo_adam_, zo_adam
from mobizo_kernels.ops.zo_momentum import foreach_zo_momentum_, zo_momentum
from mobizo_kernels.ops.zo_sign import foreach_zo_sign_, zo_sign
from mobizo_kernels.ops.zo_update import zo_update

__all__ = [
    "foreach_perturb_",
    "foreach_zo_adam_",
    "foreach_zo_momentum_",
    "foreach_zo_sign_",
    "mp_lora",
    "mp_lora_",
    "mp_lora_linear",
    "mp_outer_",
    "noise",
    "parameter_stream",
    "perturb_",
    "zo_adam",
    "zo_momentum",
    "zo_sign",
    "zo_update",
]
