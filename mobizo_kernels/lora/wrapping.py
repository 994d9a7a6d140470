"""Put the adapters that a `peft.LoraConfig` describes into a model, and take them out again."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter

import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from mobizo_kernels.lora.adapter import (
    PARAMETERS_ATTRIBUTE,
    Model,
    adapter_layers,
    adapter_of,
    bare,
    is_wrapped,
)
from mobizo_kernels.lora.installing import install, remove
from mobizo_kernels.lora.linear import MPLoRALinear
from mobizo_kernels.lora.peft_check import check_embeddings, check_no_peft, check_peft_loads
from mobizo_kernels.lora.peft_model import take_over
from mobizo_kernels.lora.targets import check_options, find_targets

_MERGED = "mobizo_merged"


def wrap(model: Model, config: LoraConfig | None = None, *, seed: int = 0) -> Model:
    """Replace the targeted linears of a model by :class:`MPLoRALinear`, in place, and freeze everything else.

    Which linears, and with which ranks and alphas, is decided by PEFT's own matching of `target_modules`
    (suffixes, a regular expression, "all-linear", or None for PEFT's choice for the architecture),
    `exclude_modules`, `layers_to_transform`, `layers_pattern`, `rank_pattern`, `alpha_pattern` and
    `use_rslora`. With `alora_invocation_tokens` the adapters act from the last occurrence of these tokens in
    a row on (Activated LoRA, arXiv 2504.12397). A is drawn kaiming-uniform as PEFT does, B starts at zero:
    the model computes what it did. Its `save_pretrained` writes the adapter from now on, as that of a
    PeftModel does.

    The active LoRA of a PeftModel is taken over with its configuration and its weights: A is frozen from now
    on, and `lora_dropout`, which is of first-order training, does not act. The model stays the same object;
    what PEFT can do with adapters it can do again after :func:`to_peft`.

    Args:
        model: any module with linears; they may be quantised. Or a PeftModel, whose active adapter is taken;
            its other ones do not act, and are back after :func:`to_peft`.
        config: is copied, never changed. A PeftModel has its own.
        seed: of A. Each linear draws on its own, so its A does not depend on what else is adapted.

    Returns:
        `model`.

    Raises:
        ValueError: before the model is touched, if it is wrapped already, holds adapters of PEFT's or
            embeddings that were resized since it was loaded, if an option of `config` cannot be honoured, if
            an entry of `target_modules` matches nothing, or something that is not a linear, or if PEFT would
            not load the adapter to the same linears, as in some models with fused experts. Of a PeftModel
            also if several adapters are active, naming them, if its LoRA is merged, off, or of another kind,
            or if another adapter changed the base weights or modules without a LoRA.
    """
    if is_wrapped(model):
        raise ValueError(f"{type(model).__name__} is wrapped already; call unwrap(model) first")
    if hasattr(model, PARAMETERS_ATTRIBUTE):
        raise ValueError(f"{type(model).__name__} is wrapped already; call unwrap_parameters(model) first")
    if isinstance(whole := getattr(model, "_orig_mod", model), PeftModel):
        if config is not None:
            raise ValueError("config must be left out for a PeftModel, whose own is taken over")
        take_over(whole)
        return model
    if config is None:
        raise ValueError(f"config must be a peft.LoraConfig for {type(model).__name__}, got None")
    config = copy.deepcopy(config)
    check_options(config)
    if config.init_lora_weights is not True:
        raise ValueError(f"LoraConfig.init_lora_weights must be True, got {config.init_lora_weights!r}")
    check_no_peft(model)
    check_embeddings(model)
    try:
        targets = find_targets(model, config, strict=True)
    except re.error as error:
        raise ValueError(f"LoraConfig: {error.pattern!r} is no regular expression: {error}") from error
    check_peft_loads(model, config, targets)
    layers = install(model, config, targets)
    if getattr(model, _MERGED, False):
        warnings.warn(
            f"{type(model).__name__} has an adapter merged into it: an adapter of it fits the merged model, "
            "not the one that it was loaded from; unwrap it and save it with save_pretrained, too",
            stacklevel=2,
        )
    for layer in layers.values():
        layer.reset_lora_a(torch.Generator().manual_seed((seed + layer.stream) % 2**63))
    return model


def unwrap(model: Model, *, merge: bool = False) -> Model:
    """Put the original linears back, the same module objects, and undo the freezing.

    Args:
        model: a wrapped model.
        merge: first add scaling * B A to the weight of each linear, in float32, rounded once to its dtype.
            The model is no longer the one that was loaded: wrapping it again warns of that.

    Returns:
        `model`.

    Raises:
        ValueError: before the model is touched, if it is not wrapped, or if `merge` meets a weight that is
            quantised or tied to that of another module, or an adapter that acts on some tokens only; or if it
            is that of a PeftModel, which :func:`to_peft` gives back.
    """
    adapter, layers = adapter_of(model), adapter_layers(model)
    if adapter.home is not None:
        raise ValueError("unwrap: the adapter was taken over from a PeftModel; call to_peft(model) first")
    if merge:
        uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        if adapter.config.alora_invocation_tokens is not None:
            raise ValueError("unwrap: merge=True cannot merge adapters that act on some tokens only")
        for name, layer in layers.items():
            _check_mergeable(name, layer.base_layer, uses)
        for layer in layers.values():
            _merge(layer)
        setattr(model, _MERGED, True)
    remove(bare(model), {name: layer.base_layer for name, layer in layers.items()})
    return model


def _check_mergeable(name: str, base: nn.Module, uses: Counter[int]) -> None:
    weight = getattr(base, "weight", None)
    if type(base) not in (nn.Linear, Conv1D) or type(weight) is not nn.Parameter:
        raise ValueError(
            f"unwrap: merge=True needs plain linears, but {name} is a {type(base).__name__} "
            f"whose weight is a {type(weight).__name__}; to_peft(model).merge_and_unload() merges into those "
            "quantised weights that PEFT can write, and rounds there"
        )
    if uses[id(weight)] > 1:
        raise ValueError(
            f"unwrap: merge=True cannot change the weight of {name}, which another module shares"
        )


@torch.no_grad()
def _merge(layer: MPLoRALinear) -> None:
    weight = layer.weight
    delta = layer.scaling * (layer.lora_b.float() @ layer.lora_a.float())
    weight.copy_(weight.float() + (delta.T if isinstance(layer.base_layer, Conv1D) else delta))
