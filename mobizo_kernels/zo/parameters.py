"""What a run tunes, and the sizes of perturbation at which its loss tells a slope."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from mobizo_kernels.lora import (
    adapter_layers,
    adapter_of,
    is_wrapped,
    rounds_inputs,
    tuned_layers,
)
from mobizo_kernels.lora.targets import plain_name
from mobizo_kernels.parameters import trained_parameters

# Where central differences of LoRA-B correlate well with the slope, by the type of the base ("rounded": any
# whose linears round their inputs) and whether the adapters act on the last tokens only, which change the
# loss less: docs/precision.md.
_EPS_RANGES = {
    ("float32", False): (1e-4, 3e-2),
    ("float32", True): (1e-4, 1e-1),
    ("other", False): (3e-3, 3e-2),
    ("other", True): (3e-2, 1e-1),
    ("rounded", False): (3e-2, 1e-1),
    ("rounded", True): (1e-1, 2e-1),
}
_BASES = {
    "float32": "a float32 base",
    "other": "a base of lower precision than float32",
    "rounded": "a base whose linears round their inputs",
}


def tuned_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The tensors that a zeroth-order run updates, by the names that choose their noise.

    They are the LoRA-B of a wrapped model, each under the name of the weight it adapts, but for that of a
    readout; and the parameters that require a gradient of any other model, tied ones once.

    Raises:
        ValueError: if there are none, or if a LoRA-B is no longer float32: steps are smaller than the spacing
            of other types, and nothing would move.
    """
    if is_wrapped(model):
        layers = tuned_layers(model)
        if not layers:
            raise ValueError(f"nothing to tune: {type(model).__name__} has the adapter of its LM head alone")
        for name, layer in layers.items():
            if layer.lora_b.dtype != torch.float32:
                raise ValueError(f"the LoRA-B of {name} must be float32, got {layer.lora_b.dtype}")
        return [(f"{name}.weight", layer.lora_b) for name, layer in layers.items()]
    return trained_parameters(model)


class Holders:
    """The modules that hold what a run tunes: an update has to reach their forwards.

    Args:
        model: that is tuned.
        tuned: its parameters, by :func:`tuned_parameters`.
    """

    def __init__(self, model: nn.Module, tuned: list[tuple[str, nn.Parameter]]) -> None:
        wanted = {id(parameter) for _, parameter in tuned}
        self._places = [
            (path, module, name, parameter)
            for path, module in model.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
            if id(parameter) in wanted
        ]

    def check(self) -> None:
        """Raise ValueError if a tensor was replaced, as `load_state_dict(assign=True)` and a move to the meta
        device do: steps would go to one that no forward sees.
        """
        for path, module, name, parameter in self._places:
            there = getattr(module, name)
            if there is not parameter:
                raise ValueError(
                    f"{plain_name(path)}.{name} is another tensor than when ZerothOrder was made, on device "
                    f"{there.device}: make it anew, or copy values into the tensor that was there"
                )


def warn_of_eps(model: nn.Module, eps: float) -> None:
    """Warn of a size of perturbation whose loss differences are lost in rounding, or no slopes any more."""
    if not is_wrapped(model):
        return
    kinds = {str(module.weight.dtype) for module in adapter_layers(model).values()}
    kind = "float32" if kinds == {"torch.float32"} else "other"
    kind = "rounded" if rounds_inputs(model) else kind
    low, high = _EPS_RANGES[kind, adapter_of(model).config.alora_invocation_tokens is not None]
    if not low <= eps <= high:
        base = _BASES[kind]
        warnings.warn(
            f"eps={eps:g} is outside of {low:g} to {high:g}, where differences of {base} follow the slope",
            stacklevel=4,
        )
