"""Adapters on disk, in PEFT's own format: adapter_config.json and adapter_model.safetensors.

A is saved as well as B, so `peft.PeftModel.from_pretrained(base, directory)` computes what the wrapped model
computes, and any tool that takes PEFT adapters takes these.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import nn
from torch.nn.functional import pad

from mobizo_kernels.conventions import PEFT_CONFIG, PEFT_WEIGHTS
from mobizo_kernels.files.file import remove_dead_scratch, scratch_directory, sorted_metadata
from mobizo_kernels.files.safetensors import with_checksum
from mobizo_kernels.lora.adapter import adapter_layers, adapter_of, bare
from mobizo_kernels.lora.peft_check import check_no_peft, check_peft_loads, peft_key, vocabulary_of
from mobizo_kernels.lora.targets import Target


def save_adapter(model: nn.Module, directory: str | os.PathLike[str], *, uniform: bool = False) -> None:
    """Write the adapter of a wrapped model to `directory`, which is created if need be.

    Both files are written beside their final places and then renamed over them: a failure while writing
    leaves an adapter that was there before as it was.

    Args:
        model: a wrapped model.
        directory: receives adapter_config.json and adapter_model.safetensors.
        uniform: write the same adapter with one rank for all linears and a scaling of 1, for engines that
            look at `r` and `lora_alpha` alone: A and B are padded by zeros, B is multiplied by its scaling.

    Raises:
        ValueError: if the model is not wrapped, or if it is none that PEFT would make of the files, see
            :func:`check_saves`.
        OSError: if `directory` is a file or cannot be written.
    """
    model = bare(model)
    check_saves(model)
    if uniform:
        config, tensors = _uniform(model)
    else:
        config, tensors = adapter_config(model), adapter_tensors(model)
    with files_of_adapter(directory) as scratch:
        metadata = with_checksum({"format": "pt"}, {name: tensor.numpy() for name, tensor in tensors.items()})
        (scratch / PEFT_WEIGHTS).write_bytes(sorted_metadata(save(tensors, metadata)))
        (scratch / PEFT_CONFIG).write_text(json.dumps(config, indent=2))


def _uniform(model: nn.Module) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and tensors of a wrapped model's adapter, every linear of one rank and scaling 1."""
    layers = adapter_layers(model)
    rank = max(layer.rank for layer in layers.values())
    config = copy.deepcopy(adapter_of(model).config)
    config.r, config.lora_alpha, config.use_rslora = rank, rank, False
    config.rank_pattern, config.alpha_pattern = {}, {}
    tensors = adapter_tensors(model)
    for name, layer in layers.items():
        a, b, more = peft_key(name, "A"), peft_key(name, "B"), rank - layer.rank
        tensors[a] = pad(tensors[a], (0, 0, 0, more))
        tensors[b] = pad(tensors[b] * layer.scaling, (0, more))
    return adapter_config(model, config), tensors


@contextmanager
def files_of_adapter(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch directory to write both files of a PEFT adapter to; then they are moved to `directory`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    remove_dead_scratch(directory)
    with scratch_directory(directory, "adapter") as scratch:
        yield scratch
        for name in (PEFT_WEIGHTS, PEFT_CONFIG):
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
    check_peft_loads(model, adapter.config, targets_of(model))


def targets_of(model: nn.Module) -> list[Target]:
    """The adapted linears of a wrapped model."""
    root = math.sqrt if adapter_of(model).config.use_rslora else float
    return [
        Target(
            name, layer, layer.in_features, layer.out_features, layer.rank, layer.scaling * root(layer.rank)
        )
        for name, layer in adapter_layers(model).items()
    ]


def adapter_config(model: nn.Module, config: LoraConfig | None = None) -> dict[str, Any]:
    """PEFT's configuration of a wrapped model's adapter as adapter_config.json holds it.

    Args:
        model: a wrapped model.
        config: another than that of its adapter, to be written for the same model.

    Raises:
        ValueError: if the model is not wrapped.
    """
    config = copy.copy(config or adapter_of(model).config)
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
    # Sets, which JSON does not know, in an order that does not depend on the process; patterns as they are
    # tried, in their own.
    return {
        name: sorted(value) if isinstance(value, set) else value for name, value in sorted(values.items())
    }


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A and B, float32 on the CPU, of a wrapped model by PEFT's names."""
    return {
        key: tensor.detach().to("cpu", torch.float32).contiguous()
        for key, tensor in parameters_by_key(model).items()
    }


def parameters_by_key(model: nn.Module) -> dict[str, torch.Tensor]:
    """A and B of a wrapped model, as it holds them, by PEFT's names."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in adapter_layers(model).items():
        tensors[peft_key(name, "A")], tensors[peft_key(name, "B")] = layer.lora_a, layer.lora_b
    return tensors
