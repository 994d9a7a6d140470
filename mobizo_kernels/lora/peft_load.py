"""Adapters in PEFT's format back from the disk: our own, and those of `PeftModel.save_pretrained`."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mobizo_kernels.conventions import PEFT_CONFIG, PEFT_WEIGHTS
from mobizo_kernels.errors import blaming
from mobizo_kernels.files.safetensors import check_undamaged
from mobizo_kernels.lora.activation import install_activation
from mobizo_kernels.lora.adapter import Model, adapter_layers, adapter_of, bare, is_wrapped
from mobizo_kernels.lora.installing import install
from mobizo_kernels.lora.linear import lora_scaling
from mobizo_kernels.lora.patterns import check_patterns
from mobizo_kernels.lora.peft_check import check_no_peft, peft_key
from mobizo_kernels.lora.peft_model import check_init
from mobizo_kernels.lora.peft_save import check_saves, parameters_by_key
from mobizo_kernels.lora.targets import check_options, find_targets, plain_name, rank_and_alpha


def load_adapter(model: Model, directory: str | os.PathLike[str]) -> Model:
    """Load an adapter that :func:`save_adapter` or `PeftModel.save_pretrained` wrote.

    A model that is not wrapped is wrapped by the saved configuration. Into a wrapped model A and B are copied
    in place, so an optimizer that holds them goes on; scalings and configuration become those of the adapter.
    The saved `lora_dropout` is dropped: it acts in first-order training only. An adapter that PEFT would load
    to another model, see :func:`wrap`, is loaded with a warning.

    Args:
        model: the base model of the adapter, wrapped or not, or the PeftModel around a wrapped one.
        directory: holds adapter_config.json and adapter_model.safetensors.

    Returns:
        `model`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the files cannot be read, if the configuration is not LoRA, has an option that cannot
            be honoured or a pattern that takes forever to match, if the tensors do not fit the model, or if
            it holds adapters of PEFT's. In every case the model is left as it was.
    """
    config, tensors = _read(Path(directory))
    check_patterns(config, [plain_name(name) for name, _ in model.named_modules()])
    if is_wrapped(model):
        layers = adapter_layers(model)
        _check_fit(model, tensors, {key: tensor.shape for key, tensor in parameters_by_key(model).items()})
    else:
        check_no_peft(model)
        targets = find_targets(model, config)
        expected = {}
        for target in targets:
            expected[peft_key(target.name, "A")] = torch.Size((target.rank, target.in_features))
            expected[peft_key(target.name, "B")] = torch.Size((target.out_features, target.rank))
        _check_fit(model, tensors, expected)
        layers = install(model, config, targets)

    for name, layer in layers.items():
        layer.lora_a.data.copy_(tensors[peft_key(name, "A")])
        layer.lora_b.data.copy_(tensors[peft_key(name, "B")])
        layer.scaling = lora_scaling(*rank_and_alpha(config, name), config.use_rslora)
    adapter = adapter_of(model)
    for hook in adapter.hooks:
        hook.remove()
    adapter.config, adapter.hooks = config, install_activation(bare(model), config, adapter.directions)
    try:
        check_saves(bare(model))
    except ValueError as reason:
        warnings.warn(
            f"the adapter of {directory} is loaded, but cannot be saved again: {reason}", stacklevel=2
        )
    return model


def _read(directory: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    for name in (PEFT_CONFIG, PEFT_WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"load_adapter: {directory} holds no {name}")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        check_undamaged(directory / PEFT_WEIGHTS)
        tensors = load_file(directory / PEFT_WEIGHTS)
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"load_adapter: {directory} cannot be read as a PEFT adapter: {error}") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"load_adapter: expected a LoRA adapter in {directory}, got {config.peft_type}")
    with blaming("load_adapter"):
        check_init(config)
    config.init_lora_weights = True
    config.lora_dropout = 0.0
    check_options(config)
    return config, tensors


def _check_fit(model: nn.Module, got: dict[str, torch.Tensor], expected: dict[str, torch.Size]) -> None:
    problems = [f"{key} is missing" for key in sorted(expected.keys() - got.keys())]
    problems += [f"{key} is unexpected" for key in sorted(got.keys() - expected.keys())]
    problems += [
        f"{key} should be {list(expected[key])} and is {list(got[key].shape)}"
        for key in sorted(expected.keys() & got.keys())
        if got[key].shape != expected[key]
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"load_adapter: the adapter does not fit {type(model).__name__}: {'; '.join(problems[:3])}{more}"
        )
