"""Adapters on disk, in PEFT's own format: adapter_config.json and adapter_model.safetensors.

A is saved as well as B, so `peft.PeftModel.from_pretrained(base, directory)` computes what the wrapped model
computes, and any tool that takes PEFT adapters takes these.
"""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from mobizo_kernels._files import remove_dead_scratch, scratch_directory, sorted_metadata
from mobizo_kernels._safetensors import check_undamaged, with_checksum
from mobizo_kernels.lora.activation import install_activation
from mobizo_kernels.lora.linear import lora_scaling
from mobizo_kernels.lora.patterns import check_patterns
from mobizo_kernels.lora.peft_check import check_no_peft, check_peft_loads, peft_key, vocabulary_of
from mobizo_kernels.lora.targets import Target, check_options, find_targets, plain_name, rank_and_alpha
from mobizo_kernels.lora.wrapping import Model, adapter_layers, adapter_of, install, is_wrapped

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Ways of initialising LoRA that leave the base weights alone; the others only make sense on a changed base.
_HARMLESS_INITS = (True, False, "gaussian", "orthogonal")


def save_adapter(model: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write the adapter of a wrapped model to `directory`, which is created if need be.

    Both files are written beside their final places and then renamed over them: a failure while writing
    leaves an adapter that was there before as it was.

    Args:
        model: a wrapped model.
        directory: receives adapter_config.json and adapter_model.safetensors.

    Raises:
        ValueError: if the model is not wrapped, or if it is none that PEFT would make of the files, see
            :func:`check_saves`.
        OSError: if `directory` is a file or cannot be written.
    """
    check_saves(model)
    config, tensors = adapter_config(model), adapter_tensors(model)
    with files_of_adapter(directory) as scratch:
        metadata = with_checksum({"format": "pt"}, {name: tensor.numpy() for name, tensor in tensors.items()})
        (scratch / WEIGHTS_FILE).write_bytes(sorted_metadata(save(tensors, metadata)))
        (scratch / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True))


@contextmanager
def files_of_adapter(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch directory to write both files of a PEFT adapter to; then they are moved to `directory`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    remove_dead_scratch(directory)
    with scratch_directory(directory, "adapter") as scratch:
        yield scratch
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            os.replace(scratch / name, directory / name)


def check_saves(model: nn.Module) -> None:
    """Raise ValueError unless the files of a wrapped model's adapter say all that there is to say.

    They do not if the model got adapters of PEFT's or other embeddings since it was wrapped, or if PEFT would
    not adapt the same linears by them.
    """
    adapter = adapter_of(model)
    check_no_peft(model)
    if (vocabulary := vocabulary_of(model)) != adapter.vocabulary:
        raise ValueError(
            f"{type(model).__name__} has {vocabulary} token embeddings and had {adapter.vocabulary} when it "
            "was wrapped: an adapter does not hold them"
        )
    check_peft_loads(model, adapter.config, _targets_of(model))


def _targets_of(model: nn.Module) -> list[Target]:
    """The adapted linears of a wrapped model."""
    root = math.sqrt if adapter_of(model).config.use_rslora else float
    return [
        Target(
            name, layer, layer.in_features, layer.out_features, layer.rank, layer.scaling * root(layer.rank)
        )
        for name, layer in adapter_layers(model).items()
    ]


def adapter_config(model: nn.Module) -> dict[str, Any]:
    """PEFT's configuration of a wrapped model's adapter as adapter_config.json holds it.

    Raises:
        ValueError: if the model is not wrapped.
    """
    config = copy.copy(adapter_of(model).config)
    config.inference_mode = True  # as PEFT saves it: loading freezes the adapter unless asked to train it
    if config.base_model_name_or_path is None:
        config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    if not config.task_type:
        # Without a task type, AutoPeftModel finds the class of the base model here.
        config.auto_mapping = {
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        }
    values = config.to_dict()
    # Sets, which JSON does not know, in an order that does not depend on the process.
    return {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A and B, float32 on the CPU, of a wrapped model by PEFT's names."""
    return {
        key: tensor.detach().to("cpu", torch.float32).contiguous()
        for key, tensor in _adapter_tensors(model).items()
    }


def load_adapter(model: Model, directory: str | os.PathLike[str]) -> Model:
    """Load an adapter that :func:`save_adapter` or `PeftModel.save_pretrained` wrote.

    A model that is not wrapped is wrapped by the saved configuration. Into a wrapped model A and B are copied
    in place, so an optimizer that holds them goes on; scalings and configuration become those of the adapter.
    The saved `lora_dropout` is dropped: it acts in first-order training only. An adapter that PEFT would load
    to another model, see :func:`wrap`, is loaded with a warning.

    Args:
        model: the base model of the adapter, wrapped or not.
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
        _check_fit(model, tensors, {key: tensor.shape for key, tensor in _adapter_tensors(model).items()})
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
    adapter.config, adapter.hooks = config, install_activation(model, config, adapter.directions)
    try:
        check_saves(model)
    except ValueError as reason:
        warnings.warn(
            f"the adapter of {directory} is loaded, but cannot be saved again: {reason}", stacklevel=2
        )
    return model


def _adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in adapter_layers(model).items():
        tensors[peft_key(name, "A")], tensors[peft_key(name, "B")] = layer.lora_a, layer.lora_b
    return tensors


def _read(directory: Path) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"load_adapter: {directory} holds no {name}")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        check_undamaged(directory / WEIGHTS_FILE)
        tensors = load_file(directory / WEIGHTS_FILE)
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"load_adapter: {directory} cannot be read as a PEFT adapter: {error}") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"load_adapter: expected a LoRA adapter in {directory}, got {config.peft_type}")
    if config.init_lora_weights not in _HARMLESS_INITS:
        raise ValueError(
            f"load_adapter: LoraConfig.init_lora_weights={config.init_lora_weights!r} changes the base "
            "weights, so the adapter alone does not describe the model"
        )
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
