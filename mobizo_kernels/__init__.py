"""Forward-only fine-tuning of LLMs at the cost of inference.

import mobizo_kernels as mobizo
mobizo.wrap(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
zo = mobizo.ZerothOrder(model, queries=4, eps=1e-2, lr=1e-3)
for batch in loader:
    zo.step(batch)
mobizo.save_adapter(model, "adapter/")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mobizo_kernels import _registration

if TYPE_CHECKING:
    from mobizo_kernels import ops, training
    from mobizo_kernels._library import cpu_capability
    from mobizo_kernels.lora import load_adapter, save_adapter, to_peft, unwrap, wrap
    from mobizo_kernels.optim import UpdateRule
    from mobizo_kernels.parameters import unwrap_parameters, wrap_parameters
    from mobizo_kernels.zo import Centred, OneSided, TwoSided, ZerothOrder

__version__ = "0.1.0"

__all__ = [
    "Centred",
    "OneSided",
    "TwoSided",
    "UpdateRule",
    "ZerothOrder",
    "cpu_capability",
    "load_adapter",
    "ops",
    "save_adapter",
    "to_peft",
    "training",
    "unwrap",
    "unwrap_parameters",
    "wrap",
    "wrap_parameters",
]

_ROOMS = {
    "_library": ("cpu_capability",),
    "lora": ("load_adapter", "save_adapter", "to_peft", "unwrap", "wrap"),
    "optim": ("UpdateRule",),
    "parameters": ("unwrap_parameters", "wrap_parameters"),
    "zo": ("Centred", "OneSided", "TwoSided", "ZerothOrder"),
}


def __getattr__(name: str) -> Any:
    """What needs torch, transformers or PEFT is imported when it is asked for: they take seconds."""
    if name in ("ops", "training"):
        return import_module(f"{__name__}.{name}")
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is to ask for, imported or not."""
    return sorted({*globals(), *__all__})


_registration.with_torch()
