"""Which base model an adapter belongs to, and which adapter a run began with, as short hashes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

import torch
from torch import nn

from mobizo_kernels.lora.adapter import adapter_layers
from mobizo_kernels.lora.linear import MPLoRALinear
from mobizo_kernels.lora.rounding import rounds_inputs
from mobizo_kernels.lora.targets import plain_name

_CHUNK = 1 << 20  # values widened to float32 at a time


@torch.no_grad()
def model_fingerprint(model: nn.Module) -> str:
    """blake2b (16 bytes, in hex) over the names, shapes and values of the base parameters.

    The values count as float32, so a bfloat16 checkpoint has one fingerprint whichever of the two types it is
    loaded in. Adapters of :func:`mobizo_kernels.wrap` do not count, tied parameters count once, and a wrapped
    model has the fingerprint of the un-wrapped one. It takes about a second for each gigabyte.

    Args:
        model: any module, wrapped or not.
    """
    return _fingerprint(sorted(_base_parameters(model).items()))


@torch.no_grad()
def frozen_fingerprint(model: nn.Module) -> str:
    """The same over those base parameters that do not require a gradient."""
    frozen = {name: p for name, p in _base_parameters(model).items() if not p.requires_grad}
    return _fingerprint(sorted(frozen.items()))


@torch.no_grad()
def adapter_fingerprints(model: nn.Module) -> tuple[str, str]:
    """The same over every LoRA-A [r, in] and over every LoRA-B [out, r] of a wrapped model, each under the
    name of the weight that it adapts, in the order of the model.
    """
    layers = adapter_layers(model)
    return (
        _fingerprint((f"{name}.weight", layer.lora_a) for name, layer in layers.items()),
        _fingerprint((f"{name}.weight", layer.lora_b) for name, layer in layers.items()),
    )


def base_dtype(model: nn.Module) -> str:
    """The types in which the base parameters are held, e.g. "bfloat16", or "float32+uint8" of two; where the
    inputs of linears are rounded as well, "+dynamic" behind them.
    """
    kinds = {str(parameter.dtype).removeprefix("torch.") for parameter in _base_parameters(model).values()}
    return "+".join(sorted(kinds)) + ("+dynamic" if rounds_inputs(model) else "")


def _fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        shape = ",".join(map(str, tensor.shape))
        digest.update(f"{name}\0{shape}\0".encode())
        plain = tensor.detach()
        if type(plain) not in (torch.Tensor, nn.Parameter):  # torchao's quantised weights have no chunks
            plain = plain.dequantize()
        for chunk in plain.flatten().split(_CHUNK):
            values = chunk.float().cpu().contiguous().numpy()
            digest.update(values if sys.byteorder == "little" else values.byteswap())
    return digest.hexdigest()


def _base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but those of adapters, by their names in the un-wrapped model."""
    bases = {f"{path}.": module for path, module in model.named_modules() if isinstance(module, MPLoRALinear)}
    adapters = {id(tensor) for module in bases.values() for tensor in (module.lora_a, module.lora_b)}
    parameters = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in adapters:
            continue
        for path in bases:
            if name.startswith(f"{path}base_layer."):
                name = path + name.removeprefix(f"{path}base_layer.")
                break
        parameters[plain_name(name)] = parameter
    return parameters
