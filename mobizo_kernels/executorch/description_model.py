"""What a program's description says of its model, of the adapter that it trains, and of the LM head.

executorch_ops/trainer/program/description.cpp is the native twin: the same fields, checks and sentences.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from mobizo_kernels.errors import blaming
from mobizo_kernels.executorch.description_readers import (
    check_size,
    list_of,
    object_of,
    or_null,
    shape,
    text,
    whole,
)
from mobizo_kernels.files.strict_json import number, of_kind


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The model that a program was made of.

    Attributes:
        name: the directory or hub name that it was loaded from, perhaps empty.
        architecture: its class in transformers.
        fingerprint: :func:`mobizo_kernels.lora.model_fingerprint`.
    """

    name: str
    architecture: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class AdapterParameter:
    """A LoRA, x -> scaling * (x A^T) B^T.

    Attributes:
        name: of the weight that it adapts, in the model without adapters.
        stream: of the noise of its B.
        lora_a: shape, (r, in).
        lora_b: shape, (out, r).
        scaling: from alpha, the rank, and use_rslora.
    """

    name: str
    stream: int
    lora_a: tuple[int, int]
    lora_b: tuple[int, int]
    scaling: float

    def __post_init__(self) -> None:
        for factor in ("lora_a", "lora_b"):
            with blaming(factor):
                for size in getattr(self, factor):
                    check_size(size, 1)
        if self.lora_a[0] != self.lora_b[1]:
            raise ValueError("lora_a and lora_b are of different rank")


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """The adapter of a program.

    Attributes:
        config: PEFT's, as adapter_config.json holds it.
        parameters: in the order of the model.
    """

    config: dict[str, Any]
    parameters: tuple[AdapterParameter, ...]


@dataclass(frozen=True, kw_only=True)
class HeadDescription:
    """The LM head of a program that can hold a readout: a LoRA of its rows of the candidate tokens, of
    scaling 1, which runs do not tune.

    Attributes:
        name: of its weight.
        shape: of its weight, (out, in).
        scale: the factor on its outputs that the logits are.
        soft_cap: c of the c * tanh(. / c) that the model makes of these, or None.
        rank: of the adapter with which the program begins, 0 for none.
        pattern: PEFT's, under which the rank and alpha of its adapter stand.
        target_modules: PEFT's, with the head among them.
    """

    name: str
    shape: tuple[int, int]
    scale: float
    soft_cap: float | None
    rank: int
    pattern: str
    target_modules: str | tuple[str, ...]

    def __post_init__(self) -> None:
        with blaming("shape"):
            for size in self.shape:
                check_size(size, 1)
        with blaming("rank"):
            check_size(self.rank, 0)


_unnamed_parameter = object_of(
    AdapterParameter,
    {"name": text, "stream": whole, "lora_a": shape, "lora_b": shape, "scaling": number},
)


def _parameter(value: Any) -> AdapterParameter:
    name = of_kind(dict, value).get("name")
    with blaming(name) if isinstance(name, str) else nullcontext():
        return _unnamed_parameter(value)


def _cap(value: Any) -> float:
    if not (cap := number(value)) > 0:
        raise ValueError(f"expected a positive number, got {json.dumps(value)}")
    return cap


def _target_modules(value: Any) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else list_of(text)(value)


read_model = object_of(ModelDescription, dict.fromkeys(("name", "architecture", "fingerprint"), text))
read_adapter = object_of(
    AdapterDescription, {"config": partial(of_kind, dict), "parameters": list_of(_parameter)}
)
read_head = object_of(
    HeadDescription,
    {
        "name": text,
        "shape": shape,
        "scale": number,
        "soft_cap": or_null(_cap),
        "rank": whole,
        "pattern": text,
        "target_modules": _target_modules,
    },
)
