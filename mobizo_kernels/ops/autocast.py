"""The ops under torch.autocast: mp_lora_linear is a linear, and the others follow their `base`.

- `mp_lora_linear` casts x, weight and bias to autocast's type and gives it, as `torch.nn.functional.linear`
  does. A and B keep theirs: a step is smaller than the spacing of 16-bit values.
- `mp_lora`, `mp_lora_` and `mp_outer_` cast x to the type of `base`, which is what a linear gave under
  autocast, and leave `base` as it is.
- Noise and updates, which are of parameters, know nothing of autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_CASTABLE = (torch.float32, torch.bfloat16, torch.float16)


def _linear(
    dtype: torch.dtype, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *adapter: Any
) -> tuple[Any, ...]:
    return (*(_cast(tensor, dtype) for tensor in (x, weight, bias)), *adapter)


def _as_base(dtype: torch.dtype, base: torch.Tensor, x: torch.Tensor, *rest: Any) -> tuple[Any, ...]:
    return (base, _cast(x, base.dtype) if base.dtype in _CASTABLE else x, *rest)


def _cast(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What autocast casts; the op refuses any other type as it does without."""
    return tensor.to(dtype) if tensor is not None and tensor.dtype in _CASTABLE else tensor


_RULES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "mp_lora_linear": _linear,
    "mp_lora": _as_base,
    "mp_lora.out": _as_base,
    "mp_lora_": _as_base,
    "mp_outer_": _as_base,
}


def _kernel(name: str, device: str, key: Any) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    op, rule = getattr(getattr(torch.ops.mobizo, packet), overload or "default"), _RULES[name]

    def call(*args: Any, **kwargs: Any) -> Any:
        given = rule(torch.get_autocast_dtype(device), *args)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return op(*given, **kwargs)

    return call


_library = torch.library.Library("mobizo", "IMPL")
for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    for _name in _RULES:
        _library.impl(_name, _kernel(_name, _device, getattr(torch._C.DispatchKey, _key)), _key)
