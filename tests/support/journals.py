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

SGD: dict[str, Any] = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}
ADAM: dict[str, Any] = {"name": "adam", "beta1": 0.9, "beta2": 0.75, "eps": 1e-8, "weight_decay": 0}
BAD_RULES: list[tuple[dict[str, Any], str]] = [
    ({}, "'name' is missing"),
    ({**SGD, "name": 1}, "name: expected a string, got a whole number"),
    ({**SGD, "name": "lion"}, "name must be one of sgd, adam, sign, got 'lion'"),
    ({"name": "sgd", "weight_decay": 0.0}, "'momentum' is missing"),
    ({"name": "sign"}, "'weight_decay' is missing"),
    ({**SGD, "momentum": "0.5"}, "momentum: expected a number, got a string"),
    ({**SGD, "momentum": False}, "momentum: expected a number, got a boolean"),
    ({**ADAM, "eps": None}, "eps: expected a number, got null"),
    ({**ADAM, "beta2": [0.5]}, "beta2: expected a number, got a list"),
    ({**SGD, "weight_decay": {}}, "weight_decay: expected a number, got an object"),
    ({**SGD, "eps": 1.0}, "'eps' is unknown"),
    ({**ADAM, "momentum": 2.0, "nesterov": 0}, "'momentum' is unknown"),
    ({**SGD, "momentum": 1}, "momentum must be in [0, 1), got 1.0"),
    ({**SGD, "momentum": -0.25, "weight_decay": -1}, "momentum must be in [0, 1), got -0.25"),
    ({**ADAM, "beta1": 1.5}, "betas must be two numbers in [0, 1), got (1.5, 0.75)"),
    ({**ADAM, "beta2": 1}, "betas must be two numbers in [0, 1), got (0.9, 1.0)"),
    ({**ADAM, "eps": 0}, "eps of adam must be positive and finite in float32, got 0.0"),
    ({**ADAM, "eps": 1e-50}, "eps of adam must be positive and finite in float32, got 1e-50"),
    ({**ADAM, "eps": 1e39}, "eps of adam must be positive and finite in float32, got 1e+39"),
    ({**SGD, "weight_decay": -1e-5}, "weight_decay must be finite and at least 0, got -1e-05"),
]
"""What stands for no rule in the JSON of a header or a description, and what both readers say of it."""


class Record(NamedTuple):
    """A record as docs/formats.md lists it."""

    step: int
    applied: int
    loss: float
    rate: float
    decay: float
    coeffs: tuple[float, ...]


def wrapped(seed: int = 0, **options: Any) -> PreTrainedModel:
    own = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    return wrap(tiny.llama(), LoraConfig(**{**own, **options}), seed=seed)


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
    assert (magic, version) == (b"MOBIZOJN", 3)
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


NEW = ("candidate_tokens", "base_dtype", "invocation_tokens", "lora_a", "lora_b")  # since version 3


def second_version(content: bytes) -> bytes:
    """A journal as the second version of the format, which knew nothing of the adapter, had it."""
    header, _, start = parse(content)
    return head_of(_known_before(header), 2) + content[start:]


def first_version(header: dict[str, Any], coeffs: list[tuple[float, ...]]) -> bytes:
    """The same run as the first version of the format, of plain SGD, had it."""
    content = head_of({name: v for name, v in _known_before(header).items() if name != "optimizer"}, 1)
    for step, values in enumerate(coeffs):
        record = struct.pack(f"<q{len(values)}f", step, *values)
        content += record + struct.pack("<I", zlib.crc32(record))
    return content


def _known_before(header: dict[str, Any]) -> dict[str, Any]:
    parameters = [{name: p[name] for name in ("name", "shape", "stream")} for p in header["parameters"]]
    return {name: v for name, v in header.items() if name not in NEW} | {"parameters": parameters}


def head_of(header: dict[str, Any], version: int) -> bytes:
    """The start of a file, up to its records."""
    text = json.dumps(header).encode()
    head = struct.pack("<8sII", b"MOBIZOJN", version, len(text)) + text
    return head + struct.pack("<I", zlib.crc32(head))
