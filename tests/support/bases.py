"""Tiny models in the forms that checkpoints are loaded in: the rows of the table in docs/precision.md.

A maker takes a directory of its own and gives the model as transformers loads it, in eval mode.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from mobizo_kernels.models import quantize_base

SIZES = {**tiny.SIZES, "hidden_size": 64, "intermediate_size": 64}


class Base(NamedTuple):
    """A form of a base model.

    Attributes:
        make: gives the model, or skips the test where a package is missing.
        error: most that its logits are from those of the float32 model, as a part of their norm.
        rounding: the same from the float32 model that has its weights: more than float32 has where inputs or
            products are rounded.
        merges: "ours" where `unwrap(merge=True)` takes it, "peft" where only PEFT's merge does, or a word of
            what PEFT says.
    """

    make: Callable[[Path], Any]
    error: float
    rounding: float
    merges: str


def plain(dtype: torch.dtype = torch.float32) -> Any:
    """The model that all forms are made of."""
    return tiny.causal_lm(LlamaConfig(**SIZES, num_key_value_heads=2)).to(dtype)


def loaded(directory: Path, config: Any = None, **options: Any) -> Any:
    given = {} if config is None else {"quantization_config": config}
    options = {"dtype": torch.float32, **given, **options}
    return AutoModelForCausalLM.from_pretrained(directory, **options).eval()


def _saved(directory: Path) -> Path:
    plain().save_pretrained(directory)
    return directory


def of_dtype(dtype: torch.dtype) -> Callable[[Path], Any]:
    return lambda directory: loaded(_saved(directory), dtype=dtype)


def torchao_file(directory: Path) -> Any:
    """By transformers' own loader."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return loaded(_saved(directory), TorchAoConfig(Int8WeightOnlyConfig()))


def torchao(kind: str) -> Callable[[Path], Any]:
    """By `mobizo train --quantization`."""

    def make(directory: Path) -> Any:
        pytest.importorskip("torchao")
        model = plain()
        quantize_base(model, kind)
        return model

    return make


def bitsandbytes(**options: Any) -> Callable[[Path], Any]:
    def make(directory: Path) -> Any:
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig

        return loaded(_saved(directory), BitsAndBytesConfig(**options))

    return make


def compressed(bits: int, dequantize: bool) -> Callable[[Path], Any]:
    """A checkpoint of compressed-tensors, weights packed into int32, with a scale for every 32 inputs."""

    def make(directory: Path) -> Any:
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
        from transformers import CompressedTensorsConfig

        file, top = _saved(directory) / "model.safetensors", 2 ** (bits - 1) - 1
        tensors: dict[str, torch.Tensor] = {}
        for name, value in load_file(file).items():
            if not ("self_attn" in name or "mlp" in name):
                tensors[name] = value
                continue
            groups = value.unflatten(1, (-1, 32))
            scale = groups.abs().amax(-1, keepdim=True) / top
            numbers = (groups / scale).round().clamp(-top - 1, top).to(torch.int8).flatten(1)
            tensors[f"{name}_packed"] = pack_to_int32(numbers, bits)
            tensors[f"{name}_scale"], tensors[f"{name}_shape"] = scale[..., 0], torch.tensor(value.shape)
        save_file(tensors, file, metadata={"format": "pt"})
        weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
        (directory / "config.json").write_text(json.dumps(config))
        return loaded(directory, CompressedTensorsConfig(dequantize=True) if dequantize else None)

    return make


def gguf(directory: Path) -> Any:
    """A file of llama.cpp in Q8_0: transformers reads it, dequantised."""
    gguf = pytest.importorskip("gguf")
    directory.mkdir(parents=True, exist_ok=True)
    model, path = plain(), directory / "model.gguf"
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in model.state_dict().items():
        value, heads = tensor.numpy(), 0
        if "q_proj" in name or "k_proj" in name:  # llama.cpp has the halves of a head interleaved
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            shape = (heads, 2, len(value) // heads // 2, *value.shape[1:])
            value = value.reshape(shape).swapaxes(1, 2).reshape(value.shape)
        there = names.get_name(name, try_suffixes=(".weight",))
        if "blk" in there and value.ndim == 2:
            writer.add_tensor(there, gguf.quants.quantize(value, q8), raw_dtype=q8)
        else:
            writer.add_tensor(there, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return loaded(directory, gguf_file=path.name)


_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
BASES: dict[str, Base] = {
    "float32": Base(of_dtype(torch.float32), 1e-6, 1e-6, "ours"),
    "bfloat16": Base(of_dtype(torch.bfloat16), 0.05, 0.05, "ours"),
    "float16": Base(of_dtype(torch.float16), 0.005, 0.005, "ours"),
    "torchao-int8": Base(torchao("int8"), 0.03, 1e-4, "get_apply_tensor_subclass"),
    "torchao-int8-dynamic": Base(torchao("int8-dynamic"), 0.06, 0.06, "get_apply_tensor_subclass"),
    "torchao-int4": Base(torchao("int4"), 0.4, 1e-4, "get_apply_tensor_subclass"),
    "torchao-int8-loaded": Base(torchao_file, 0.03, 1e-4, "peft"),
    "nf4": Base(bitsandbytes(**_NF4), 0.4, 0.02, "peft"),
    "llm-int8": Base(bitsandbytes(load_in_8bit=True, llm_int8_threshold=0.0), 0.05, 0.05, "peft"),
    "compressed-tensors-int4": Base(compressed(4, dequantize=True), 0.4, 1e-4, "ours"),
    "compressed-tensors-int8": Base(compressed(8, dequantize=True), 0.03, 1e-4, "ours"),
    "gguf-q8_0": Base(gguf, 0.03, 1e-4, "ours"),
}


def dequantised(linear: nn.Module) -> torch.Tensor:
    """The weight that a linear computes with, float32 [out, in]; before its first forward, which packs those
    of bitsandbytes in another way.
    """
    weight: Any = linear.weight
    if type(linear).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if type(linear).__name__ == "Linear8bitLt":
        return weight.CB.float() * weight.SCB.float()[:, None] / 127
    plain_tensor = type(weight) in (torch.Tensor, nn.Parameter)
    return (weight if plain_tensor else weight.dequantize()).detach().float()
