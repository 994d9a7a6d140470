"""What the tests of journals share: tiny runs, a parser of the file that is not the package's, and rules."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig
from transformers import PreTrainedModel

from mobizo_kernels.lora import adapter_layers, wrap
from mobizo_kernels.zo import ZerothOrder

QUERIES = 3
RECORD = 28 + 4 * QUERIES
OPTIONS: dict[str, Any] = {"queries": QUERIES, "eps": 0.05, "lr": 0.02, "run_seed": 2**63 + 11}

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.5},
    "momentum": {"momentum": 0.9},
    "momentum and decay": {"momentum": 0.5, "weight_decay": 2.0},
    "adam": {"optimizer": "adam", "betas": (0.8, 0.95), "adam_eps": 1e-6, "weight_decay": 0.5},
    "sign": {"optimizer": "sign", "weight_decay": 0.25},
}


class Record(NamedTuple):
    """A record as docs/formats.md lists it."""

    step: int
    applied: int
    loss: float
    rate: float
    decay: float
    coeffs: tuple[float, ...]


def wrapped(**options: Any) -> PreTrainedModel:
    return wrap(
        tiny.llama(), LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], **options)
    )


def adapters(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: layer.lora_b.detach().clone() for name, layer in adapter_layers(model).items()}


def assert_same_adapters(model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    actual = adapters(model)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_bits(actual[name], value)


def train(
    path: Path, rng: torch.Generator, steps: int = 4, **options: Any
) -> tuple[PreTrainedModel, list[dict[str, torch.Tensor]]]:
    """A journal of `steps` steps at `path`, the model, and its adapter before and after each step."""
    model = wrapped()
    zo = ZerothOrder(model, **{**OPTIONS, **options}, journal=path)
    states = [adapters(model)]
    for _ in range(steps):
        zo.step(tiny.batch(rng))
        states.append(adapters(model))
    assert zo.journal is not None
    zo.journal.close()
    return model, states


def parse(content: bytes) -> tuple[dict[str, Any], list[Record], int]:
    """docs/formats.md in a few lines: the header, the records, and where they begin."""
    magic, version, size = struct.unpack_from("<8sII", content)
    assert (magic, version) == (b"MOBIZOJN", 2)
    header = json.loads(content[16 : 16 + size])
    start = 16 + size + 4
    assert struct.unpack_from("<I", content, start - 4) == (zlib.crc32(content[: start - 4]),)
    width = 28 + 4 * header["queries"]
    records = []
    for at in range(start, len(content), width):
        *numbers, crc = struct.unpack_from(f"<qI3f{header['queries']}fI", content, at)
        assert crc == zlib.crc32(content[at : at + width - 4])
        records.append(Record(*numbers[:5], tuple(numbers[5:])))
    return header, records, start


def first_version(header: dict[str, Any], coeffs: list[tuple[float, ...]]) -> bytes:
    """The same run as the first version of the format, of plain SGD, had it."""
    text = json.dumps({name: value for name, value in header.items() if name != "optimizer"}).encode()
    content = struct.pack("<8sII", b"MOBIZOJN", 1, len(text)) + text
    content += struct.pack("<I", zlib.crc32(content))
    for step, values in enumerate(coeffs):
        record = struct.pack(f"<q{len(values)}f", step, *values)
        content += record + struct.pack("<I", zlib.crc32(record))
    return content
