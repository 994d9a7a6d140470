"""The inputs of the methods of a delegated program, which whoever runs it has to know in their order.

executorch_ops/trainer/program/inputs.cpp is the native twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobizo_kernels.ops.checks import LOWERINGS

if TYPE_CHECKING:
    from mobizo_kernels.executorch.description import Description


def require_lowering(lowering: str, distribution: str) -> None:
    """Raise ValueError unless adapters under such directions can be lowered so."""
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering must be one of {', '.join(LOWERINGS)}, got {lowering!r}")
    if lowering == "delegated" and distribution != "outer":
        raise ValueError(f"lowering delegated needs distribution outer, got {distribution}")


@dataclass(frozen=True, kw_only=True)
class MethodInput:
    """A tensor that a method is given.

    Attributes:
        name: of the argument; a factor of an adapter has its parameter's behind a colon.
        dtype: "int64" or "float32".
        shape: of what may vary, the largest.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


def method_inputs(description: Description) -> dict[str, tuple[MethodInput, ...]]:
    """Those of `train_step` and `evaluate` of a delegated program."""
    d, parameters = description, description.adapter.parameters

    def ints(name: str, *shape: int) -> MethodInput:
        return MethodInput(name=name, dtype="int64", shape=shape)

    def batch(rows: int) -> list[MethodInput]:
        tokens = (rows, d.max_length)
        return [
            ints("input_ids", *tokens),
            ints("attention_mask", *tokens),
            ints("target_positions", rows, d.targets_per_row),
        ]

    def factors(name: str, shapes: list[tuple[int, ...]]) -> list[MethodInput]:
        return [
            MethodInput(name=f"{name}:{parameter.name}", dtype="float32", shape=shape)
            for parameter, shape in zip(parameters, shapes, strict=True)
        ]

    lora_b = factors("lora_b", [p.lora_b for p in parameters])
    u = factors("u", [(d.groups, p.lora_b[0]) for p in parameters])
    v = factors("v", [(d.groups, p.lora_b[1]) for p in parameters])
    head = []
    if d.head is not None and d.candidate_tokens is not None:
        rows = (len(d.candidate_tokens), d.head.shape[1])
        head = [MethodInput(name="head", dtype="float32", shape=rows)]
    targets = ints("target_ids", d.batch_size, d.targets_per_row)
    return {
        "train_step": (*batch(d.batch_size), targets, *lora_b, *u, *v, *head),
        "evaluate": (*batch(d.evaluation_rows), *lora_b, *head),
    }


def check_inputs(
    expected: dict[str, tuple[MethodInput, ...]], got: dict[str, tuple[MethodInput, ...]]
) -> None:
    """Raise ValueError, naming the first that differs, unless a description promises what is expected."""
    for method, inputs in expected.items():
        if len(got[method]) != len(inputs):
            raise ValueError(f"{method} must have {len(inputs)} inputs, got {len(got[method])}")
        for number, (wanted, there) in enumerate(zip(inputs, got[method], strict=True)):
            if there != wanted:
                raise ValueError(f"{method}: input {number} must be {wanted}, got {there}")
