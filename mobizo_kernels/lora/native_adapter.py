"""Adapters as the native trainer reads and writes them: one file with PEFT's tensors, its configuration and
the fingerprint of the base model. docs/formats.md describes the file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from mobizo_kernels.conventions import PEFT_CONFIG, PEFT_WEIGHTS
from mobizo_kernels.files import strict_json
from mobizo_kernels.files.file import sorted_metadata, written_whole
from mobizo_kernels.files.safetensors import Tensor, read_safetensors, with_checksum
from mobizo_kernels.lora.adapter import Model
from mobizo_kernels.lora.peft_load import load_adapter
from mobizo_kernels.lora.peft_save import (
    adapter_config,
    adapter_tensors,
    check_saves,
    files_of_adapter,
)
from mobizo_kernels.lora.weights_fingerprint import model_fingerprint

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def save_device_adapter(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the adapter of a wrapped model to the file `path`, whole or not at all.

    Args:
        model: a wrapped model.
        path: of the file; one that is there is replaced.

    Raises:
        ValueError: if the model is not wrapped, or if PEFT would make another model of the adapter.
        OSError: if the file cannot be written.
    """
    check_saves(model)
    metadata = {
        "format": "pt",
        "adapter_config": json.dumps(adapter_config(model)),
        "base_fingerprint": model_fingerprint(model),
    }
    tensors = adapter_tensors(model)
    metadata = with_checksum(metadata, {name: tensor.numpy() for name, tensor in tensors.items()})
    with written_whole(Path(path)) as scratch:
        scratch.write_bytes(sorted_metadata(save(tensors, metadata)))


def device_from_peft(model: Model, directory: str | os.PathLike[str], path: str | os.PathLike[str]) -> Model:
    """Turn a PEFT adapter into a device adapter.

    Args:
        model: the base model of the adapter; it is left with the adapter loaded.
        directory: holds adapter_config.json and adapter_model.safetensors.
        path: of the device adapter; a file that is there is replaced.

    Returns:
        `model`.

    Raises:
        FileNotFoundError: if a file of the adapter is missing.
        ValueError: before anything is written, if :func:`load_adapter` refuses the adapter, or if it says
            that it belongs to another base model.
        OSError: if `path` cannot be written.
    """
    load_adapter(model, directory)
    there = adapter_metadata(Path(directory) / PEFT_WEIGHTS).get("base_fingerprint")
    if there is not None and there != (here := model_fingerprint(model)):
        raise ValueError(
            f"adapter {directory} is of another base model: its base_fingerprint is {there}, that of the "
            f"model {here}"
        )
    save_device_adapter(model, path)
    return model


def peft_from_device(path: str | os.PathLike[str], directory: str | os.PathLike[str]) -> None:
    """Turn a device adapter into the two files of a PEFT adapter, which `PeftModel.from_pretrained` loads.

    adapter_model.safetensors is the device's file byte for byte, so the way back loses nothing.

    Args:
        path: of the device adapter.
        directory: receives the files, and is created if need be.

    Raises:
        FileNotFoundError: if there is no file `path`.
        ValueError: before anything is written, if it is no device adapter or holds no LoRA.
        OSError: if `directory` is a file or cannot be written.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"adapter: there is no file {str(path)!r}")
    try:
        metadata, tensors = read_safetensors(path)
    except ValueError as error:
        raise ValueError(f"adapter {path} cannot be read ({error})") from error
    config = _config(metadata, path)
    _check_tensors(tensors, path)
    with files_of_adapter(directory) as scratch:
        shutil.copyfile(path, scratch / PEFT_WEIGHTS)
        (scratch / PEFT_CONFIG).write_text(json.dumps(config, indent=2))


def adapter_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, empty if it has none."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _config(metadata: dict[str, str], path: Path) -> dict[str, object]:
    """The configuration in the metadata, known to be one that PEFT takes for LoRA."""
    if "adapter_config" not in metadata:
        raise ValueError(
            f"adapter {path} is no device adapter: expected adapter_config in its metadata, got "
            f"{', '.join(sorted(metadata)) or 'none'}"
        )
    try:
        values = strict_json.loads_as_native(metadata["adapter_config"].encode())
        config = PeftConfig.from_peft_type(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"adapter {path}: its adapter_config cannot be understood ({error})") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"adapter {path}: expected the adapter_config of a LoRA, got {config.peft_type}")
    return values


def _check_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Raise ValueError unless the tensors are pairs of a LoRA-A [r, in] and a LoRA-B [out, r], float32."""
    factors: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or tensor.dtype != "F32" or len(tensor.shape) != 2:
            raise ValueError(
                f"adapter {path}: expected float32 matrices called base_model.model.*.lora_A.weight and "
                f"lora_B.weight, got {name}, {tensor.dtype} {list(tensor.shape)}"
            )
        factors[match[2]][match[1]] = tensor
    if not tensors or factors["A"].keys() != factors["B"].keys():
        odd = sorted(factors["A"].keys() ^ factors["B"].keys())
        raise ValueError(f"adapter {path}: expected pairs of A and B, got one alone of {odd or 'none'}")
    for name, a in factors["A"].items():
        b = factors["B"][name]
        if a.shape[0] != b.shape[1]:
            raise ValueError(
                f"adapter {path}: expected one rank for A and B of {name}, got {a.shape[0]} and {b.shape[1]}"
            )
