"""The adapted linears of a model in the places of its own, and out of them again."""

from __future__ import annotations

from collections.abc import Mapping

from peft import LoraConfig
from torch import nn

from mobizo_kernels.lora.activation import install_activation
from mobizo_kernels.lora.adapter import ATTRIBUTE, Adapter, PeftHome, adapter_of
from mobizo_kernels.lora.linear import Directions, MPLoRALinear, device_of
from mobizo_kernels.lora.peft_check import vocabulary_of
from mobizo_kernels.lora.saving import install_saving, remove_saving
from mobizo_kernels.lora.targets import Target
from mobizo_kernels.ops import parameter_stream


def install(
    model: nn.Module, config: LoraConfig, targets: list[Target], home: PeftHome | None = None
) -> dict[str, MPLoRALinear]:
    """Freeze the model and put an adapter, A and B zero, in the place of every target; the layers by path."""
    directions = Directions(device_of(targets[0].module))
    layers = {
        target.name: MPLoRALinear(
            target.module,
            target.in_features,
            target.out_features,
            rank=target.rank,
            alpha=target.alpha,
            rslora=config.use_rslora,
            stream=parameter_stream(f"{target.name}.weight"),
            directions=directions,
        )
        for target in targets
    }
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    install_saving(model)
    hooks = install_activation(model, config, directions)
    setattr(model, ATTRIBUTE, Adapter(config, directions, frozen, hooks, vocabulary_of(model), home))
    return layers


def remove(model: nn.Module, originals: Mapping[str, nn.Module]) -> None:
    """Put modules in the places of the adapted linears, by their paths, and undo the freezing."""
    adapter = adapter_of(model)
    for name, original in originals.items():
        model.set_submodule(name, original)
    for parameter in adapter.frozen:
        parameter.requires_grad_(True)
    for hook in adapter.hooks:
        hook.remove()
    remove_saving(model)
    delattr(model, ATTRIBUTE)
