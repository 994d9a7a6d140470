"""What several layers know, carried to the LM head by the adapters of the layers.

The adapter of an MLP's last linear reads the neurons of the MLP and writes what it reads along axes of the
residual stream on which the states hardly lie; there the head finds it. The layers in between would read the
axes, too, and take away what they do not expect there: the adapters of their linears hide it from them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.lora import MPLoRALinear, adapter_layers, layers_from_first_adapted


@dataclass(frozen=True)
class RelayLayer:
    """A decoder layer of the Llama kind with adapters in all linears that matter here.

    Attributes:
        readers: the linears that read the residual stream, with the RMS norm before each.
        norm: the RMS norm before the MLP.
        down: the last linear of the MLP, which writes to the residual stream.
    """

    readers: Mapping[MPLoRALinear, nn.Module]
    norm: nn.Module
    down: MPLoRALinear

    @property
    def linears(self) -> list[MPLoRALinear]:
        """All of them."""
        return [*self.readers, self.down]


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The RMS norm before the LM head of a model of :func:`relay_layers`."""
    norm = model.base_model.norm
    assert isinstance(norm, nn.Module)
    return norm


def relay_layers(model: PreTrainedModel, rank: int) -> dict[int, RelayLayer]:
    """The layers of the upper third of a wrapped model, by their indices.

    Raises:
        ValueError: unless they are of the Llama kind and have adapters in all linears that matter, of `rank`
            or more, which change nothing yet; or if the LM head has an adapter.
    """
    name = type(model).__name__
    if isinstance(model.get_output_embeddings(), MPLoRALinear):
        raise ValueError(f"the LM head of {name} has an adapter already")
    modules, _ = layers_from_first_adapted(model, adapter_layers(model).values())
    found = {}
    for index in range(2 * len(modules) // 3, len(modules)):
        layer = _relay_layer(modules[index])
        if layer is None or not _is_rms(getattr(model.base_model, "norm", None)):
            raise ValueError(
                "layers='several' needs a model of the Llama kind with adapters in all linears of its upper "
                f"third; layer {index} of this {name} is no such"
            )
        if (least := min(linear.rank for linear in layer.linears)) < rank:
            raise ValueError(
                f"layers='several' needs adapters of rank {rank} for {rank + 1} labels, got {least}"
            )
        if any(linear.lora_b.any() for linear in layer.linears):
            raise ValueError(
                f"layers='several' needs adapters that change nothing yet, which those of layer {index} do"
            )
        found[index] = layer
    return found


def places(layers: Collection[int]) -> list[int]:
    """Those of the layers that are read: four of them, the first and the last among them."""
    indices = sorted(layers)
    return sorted({indices[round(part * (len(indices) - 1) / 3)] for part in range(4 * bool(indices))})


@torch.no_grad()
def write(down: MPLoRALinear, inner: torch.Tensor, maps: torch.Tensor, columns: torch.Tensor) -> None:
    """Add columns @ maps @ x to what a linear gives for x, by the first ranks of its adapter.

    The rows of A are as long as lets their outputs be as large as those of the rows that were drawn: the
    directions of a step then do as much there as in the rest of B.

    Args:
        down: its adapter changes nothing yet.
        inner: x of the rows of a readout, float64 [n, I].
        maps: float64 [k, I].
        columns: float64 [H, k].
    """
    ranks = slice(len(maps))
    drawn = (inner @ down.lora_a.double().cpu().T).square().mean().sqrt()
    sizes = (inner @ maps.T).square().mean(dim=0).sqrt() / drawn
    sizes.clamp_(min=torch.finfo(sizes.dtype).tiny)
    down.lora_a[ranks] = (maps / sizes[:, None]).to(down.lora_a)
    down.lora_b[:, ranks] = (columns * sizes / down.scaling).to(down.lora_b)


@torch.no_grad()
def hide(layer: RelayLayer, axes: torch.Tensor) -> None:
    """Let a layer not see what lies along some axes of the residual stream, by the first ranks of its
    adapters, which change nothing yet.

    Args:
        layer: of a model of :func:`relay_layers`.
        axes: orthonormal, float64 [k, H].
    """
    ranks = slice(len(axes))
    for linear, norm in layer.readers.items():
        gains = gains_of(norm, axes.shape[1])
        rows = axes / gains
        sizes = rows.norm(dim=1) / linear.lora_a.double().cpu().norm(dim=1).mean()
        seen = _outputs(linear, axes * gains).T
        linear.lora_a[ranks] = (rows / sizes[:, None]).to(linear.lora_a)
        linear.lora_b[:, ranks] = (-seen * sizes / linear.scaling).to(linear.lora_b)


@torch.no_grad()
def gains_of(norm: nn.Module, width: int) -> torch.Tensor:
    """What an RMS norm multiplies each value with, float64 [H]."""
    like = next(norm.parameters())
    gains: torch.Tensor = norm(torch.ones(1, width, dtype=like.dtype, device=like.device))[0]
    return gains.double().cpu()


def _relay_layer(module: nn.Module) -> RelayLayer | None:
    attention, mlp = getattr(module, "self_attn", None), getattr(module, "mlp", None)
    first, second = (getattr(module, f"{name}_layernorm", None) for name in ("input", "post_attention"))
    reading = [(attention, first, f"{name}_proj") for name in ("q", "k", "v")]
    reading += [(mlp, second, f"{name}_proj") for name in ("gate", "up")]
    readers = {
        linear: norm
        for owner, norm, name in reading
        if _is_rms(norm) and isinstance(linear := getattr(owner, name, None), MPLoRALinear)
    }
    down = getattr(mlp, "down_proj", None)
    # Some normalise what a layer writes, too, or scale it.
    other = [
        child for name, child in module.named_children() if "norm" in name and child not in (first, second)
    ]
    scaled = getattr(module, "residual_multiplier", 1.0) != 1.0
    if len(readers) < len(reading) or not isinstance(down, MPLoRALinear) or other or scaled:
        return None
    return RelayLayer(readers, second, down) if _is_rms(second) else None


def _is_rms(norm: object) -> TypeGuard[nn.Module]:
    """A LayerNorm makes zeros of ones, or has a bias, too."""
    if not isinstance(norm, nn.Module) or len(parameters := list(norm.parameters())) != 1:
        return False
    return parameters[0].dim() == 1 and bool(gains_of(norm, len(parameters[0])).all())


def _outputs(linear: MPLoRALinear, inputs: torch.Tensor) -> torch.Tensor:
    """What a linear makes of inputs [n, in] without its adapter and bias, whatever its kind, [n, out]."""
    dtype = linear.weight.dtype if linear.weight.dtype.is_floating_point else torch.float32
    rows = torch.cat([torch.zeros_like(inputs[:1]), inputs]).to(linear.lora_a.device, dtype)
    outputs = linear.base_layer(rows).double().cpu()
    return outputs[1:] - outputs[0]
