"""The ops on CUDA and ROCm tensors, which share a dispatch key. Triton is imported at the first launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch

# Of each op, the module in mobizo_kernels.triton and the function there.
LAUNCHES = {
    "noise": ("noise", "noise"),
    "noise.out": ("noise", "noise_out"),
    "perturb_": ("perturb", "perturb_"),
    "foreach_perturb_": ("perturb", "foreach_perturb_"),
    "zo_update": ("zo_update", "zo_update"),
    "zo_update.out": ("zo_update", "zo_update"),
    "zo_momentum": ("zo_momentum", "zo_momentum"),
    "zo_momentum.out": ("zo_momentum", "zo_momentum"),
    "foreach_zo_momentum_": ("zo_momentum", "foreach_zo_momentum_"),
    "zo_adam": ("zo_adam", "zo_adam"),
    "zo_adam.out": ("zo_adam", "zo_adam"),
    "foreach_zo_adam_": ("zo_adam", "foreach_zo_adam_"),
    "zo_sign": ("zo_sign", "zo_sign"),
    "zo_sign.out": ("zo_sign", "zo_sign"),
    "foreach_zo_sign_": ("zo_sign", "foreach_zo_sign_"),
    "mp_lora": ("mp_lora", "mp_lora"),
    "mp_lora.out": ("mp_lora", "mp_lora_out"),
    "mp_lora_": ("mp_lora", "mp_lora_"),
    "mp_lora_linear": ("mp_lora_linear", "mp_lora_linear"),
    "mp_outer_": ("mp_outer", "mp_outer_"),
}


def _first_tensor(args: Sequence[Any]) -> torch.Tensor:
    for arg in args:
        if isinstance(arg, torch.Tensor):
            return arg
        if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], torch.Tensor):
            return arg[0]
    raise TypeError("expected a tensor among the arguments")


def launcher(op: str) -> Callable[..., Any]:
    """The implementation of `op`, run on the device of its first tensor."""
    module, function = LAUNCHES[op]

    def launch(*args: Any, **kwargs: Any) -> Any:
        try:
            kernels = import_module(f"mobizo_kernels.triton.{module}")
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            raise RuntimeError(
                f"mobizo::{op}: tensors on a GPU need Triton, which is not installed: "
                "pip install 'mobizo-kernels[gpu]'"
            ) from error
        with torch.cuda.device_of(_first_tensor((*args, *kwargs.values()))):
            return getattr(kernels, function)(*args, **kwargs)

    return launch


_library = torch.library.Library("mobizo", "IMPL")
for _op in LAUNCHES:
    _library.impl(_op, launcher(_op), "CUDA")
