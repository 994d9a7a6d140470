"""A LoRA of the LM head that a run leaves as it is: what a readout is written as."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.lora.adapter import adapter_layers, adapter_of
from mobizo_kernels.lora.linear import Directions, MPLoRALinear, device_of
from mobizo_kernels.lora.peft_check import check_peft_loads
from mobizo_kernels.lora.peft_save import targets_of
from mobizo_kernels.lora.targets import Target, find_targets, plain_name
from mobizo_kernels.ops import parameter_stream


@torch.no_grad()
def adapt_head(
    model: PreTrainedModel, tokens: torch.Tensor, directions: torch.Tensor, words: torch.Tensor
) -> MPLoRALinear:
    """Add words @ directions to the rows of a wrapped model's LM head that belong to some tokens, as a LoRA.

    It is part of the model's adapter from then on, with a rank of its own, for PEFT as well. A head whose
    weight is that of the embeddings keeps it: the LoRA is of the head alone. Runs do not tune it
    (:func:`hold_head`).

    Args:
        model: wrapped, its head without an adapter.
        tokens: int64 [C], the rows.
        directions: A, [r, H].
        words: the rows of B, [C, r]; all others are zero.

    Returns:
        The adapted head.

    Raises:
        ValueError: before the model is touched, if it is not wrapped, or its head has an adapter, is no
            linear, or is excluded by the configuration.
    """
    adapter = adapter_of(model)
    head = model.get_output_embeddings()
    if isinstance(head, MPLoRALinear):
        raise ValueError(f"the LM head of {type(model).__name__} has an adapter already")
    name = head_name(model)
    config, target = config_with_head(model, len(directions))
    layer = MPLoRALinear(
        head,
        target.in_features,
        target.out_features,
        rank=target.rank,
        alpha=target.alpha,
        rslora=config.use_rslora,
        stream=parameter_stream(f"{name}.weight"),
        directions=Directions(device_of(head)),
    )
    layer.lora_a.copy_(directions)
    layer.lora_b[tokens.to(layer.lora_b.device)] = words.to(layer.lora_b)
    model.set_submodule(name, layer)
    adapter.config = config
    return layer


def config_with_head(model: PreTrainedModel, rank: int) -> tuple[LoraConfig, Target]:
    """The configuration of a wrapped model with an adapter of the LM head of this rank, and of scaling 1.

    Raises:
        ValueError: if the head is no linear or is excluded by the configuration, or if PEFT would load
            another adapter.
    """
    name = head_name(model)
    config = _with_head(adapter_of(model).config, name, rank)
    only = copy.copy(config)
    only.target_modules = [name]
    (target,) = find_targets(model, only)
    check_peft_loads(model, config, [*targets_of(model), target])
    return config, target


def config_without_head(config: LoraConfig, name: str) -> LoraConfig:
    """What :func:`config_with_head` was made of, `name` being the path of the head."""
    config = copy.deepcopy(config)
    targets, ending = config.target_modules, f")|{re.escape(name)}"
    if isinstance(targets, str):
        config.target_modules = targets.removeprefix("(?:").removesuffix(ending)
    else:
        config.target_modules = [target for target in targets or () if target != name]
    for patterns in (config.rank_pattern, config.alpha_pattern):
        if patterns:
            patterns.pop(head_pattern(name), None)
    return config


def head_pattern(name: str) -> str:
    """The pattern of PEFT's under which the rank and alpha of a head's adapter stand."""
    return f"^{re.escape(name)}"


def is_readout(layer: MPLoRALinear, tokens: Sequence[int]) -> bool:
    """Whether the adapter of an LM head is of these rows alone, as that of a readout is: not zero, but zero
    everywhere else, and of scaling 1.
    """
    rows = layer.lora_b.any(dim=1).nonzero()[:, 0].tolist()
    return bool(rows) and layer.scaling == 1 and set(rows) <= set(tokens)


def head_name(model: PreTrainedModel) -> str:
    """The path of the LM head."""
    head = model.get_output_embeddings()
    return next(plain_name(path) for path, module in model.named_modules() if module is head)


def hold_head(model: PreTrainedModel) -> None:
    """Let no run tune the adapter of the LM head: it gets directions of its own, which nobody sets.

    Args:
        model: wrapped, as by :func:`load_adapter` with what :func:`adapt_head` made.

    Raises:
        ValueError: if the model is not wrapped, or its head has no adapter.
    """
    adapter_of(model)
    head = model.get_output_embeddings()
    if not isinstance(head, MPLoRALinear):
        raise ValueError(f"the LM head of {type(model).__name__} has no adapter")
    head.directions = Directions(device_of(head))


def held_head(model: nn.Module) -> MPLoRALinear | None:
    """The LM head of a wrapped model if it has an adapter that no run tunes."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    held = isinstance(head, MPLoRALinear) and head.directions is not adapter_of(model).directions
    return head if held else None


def tuned_layers(model: nn.Module) -> dict[str, MPLoRALinear]:
    """The adapted linears whose B a run tunes, by their paths: all but a head of :func:`hold_head`."""
    held = held_head(model)
    return {name: layer for name, layer in adapter_layers(model).items() if layer is not held}


def _with_head(config: LoraConfig, name: str, rank: int) -> LoraConfig:
    """The configuration with one more target, of a rank of its own and scaling 1."""
    config = copy.deepcopy(config)
    pattern, targets = head_pattern(name), config.target_modules
    if isinstance(targets, str):
        config.target_modules = f"(?:{targets})|{re.escape(name)}"
    else:  # as a whole path it counts whatever `layers_to_transform` says
        config.target_modules = [*sorted(targets or ()), name]
    config.rank_pattern = {pattern: rank, **(config.rank_pattern or {})}
    alpha = math.sqrt(rank) if config.use_rslora else rank
    config.alpha_pattern = {pattern: alpha, **(config.alpha_pattern or {})}
    return config
