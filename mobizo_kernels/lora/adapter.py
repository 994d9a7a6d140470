"""What `wrap` leaves on a model, and how to find it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from peft import LoraConfig, PeftModel
from torch import nn

from mobizo_kernels.lora.linear import Directions, MPLoRALinear
from mobizo_kernels.lora.targets import plain_name

Model = TypeVar("Model", bound=nn.Module)

ATTRIBUTE = "mobizo_adapter"
PARAMETERS_ATTRIBUTE = "mobizo_parameters"
"""Of a model of `wrap_parameters`, which has no adapters."""


@dataclass
class PeftHome:
    """Where an adapter was taken over from, and goes back to.

    Attributes:
        model: around the wrapped one.
        name: of the adapter there.
        layers: PEFT's linears, by their paths in the un-wrapped model.
    """

    model: PeftModel
    name: str
    layers: dict[str, Any]


@dataclass
class Adapter:
    """What `wrap` leaves on a model, as an attribute of it.

    Attributes:
        config: its LoraConfig, with `target_modules` written out.
        directions: shared by the layers.
        frozen: the parameters that required a gradient before; `unwrap` lets them require it again.
        hooks: handles of what makes the adapters act from the invocation tokens on.
        vocabulary: tokens that the model had embeddings for, None if it is not one of transformers.
        home: the PeftModel whose adapter it is, None for one that `wrap` drew.
    """

    config: LoraConfig
    directions: Directions
    frozen: list[nn.Parameter]
    hooks: list[Any]
    vocabulary: int | None
    home: PeftHome | None = None


def is_wrapped(model: nn.Module) -> bool:
    """Whether the model holds adapters of :func:`mobizo_kernels.wrap`."""
    return hasattr(model, ATTRIBUTE)


def adapter_of(model: nn.Module) -> Adapter:
    """What :func:`mobizo_kernels.wrap` left on the model. Raises ValueError if the model is not wrapped."""
    if not is_wrapped(model):
        raise ValueError(
            f"{type(model).__name__} is not wrapped; call wrap(model, peft.LoraConfig(...)) first"
        )
    adapter: Adapter = getattr(model, ATTRIBUTE)
    return adapter


def adapter_layers(model: nn.Module) -> dict[str, MPLoRALinear]:
    """The adapted linears by their paths in the un-wrapped model; empty if the model is not wrapped."""
    modules = bare(model).named_modules()
    return {plain_name(name): module for name, module in modules if isinstance(module, MPLoRALinear)}


def bare(model: nn.Module) -> nn.Module:
    """The model inside a PeftModel; any other model as it is."""
    whole = getattr(model, "_orig_mod", model)
    return whole.get_base_model() if isinstance(whole, PeftModel) else model
