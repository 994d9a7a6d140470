"""The header of a journal: all that decides on the outcome of a run, as the file holds it."""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mobizo_kernels.errors import blaming
from mobizo_kernels.files import strict_json
from mobizo_kernels.optim.update_rule import UpdateRule

MAGIC = b"MOBIZOJN"
VERSION = 3

_PREFIX = struct.Struct("<8sII")  # magic, version, bytes of the JSON
_CRC = struct.Struct("<I")
# What a header gets that an earlier version did not have: version 1 knew plain SGD only.
_SINCE: dict[int, dict[str, Any]] = {
    2: {"optimizer": UpdateRule().as_json()},
    3: dict.fromkeys(("candidate_tokens", "base_dtype", "invocation_tokens", "lora_a", "lora_b")),
}

_NONE = type(None)
_FIELDS: dict[str, tuple[type, ...]] = {
    "run_seed": (int,), "queries": (int,), "eps": (int, float), "lr": (int, float),
    "lr_schedule": (str, _NONE), "steps": (int, _NONE), "normalize": (bool,), "distribution": (str,),
    "estimator": (str,), "optimizer": (dict,), "batch_size": (int, _NONE), "data": (str, _NONE),
    "candidate_tokens": (list, _NONE), "base_fingerprint": (str, _NONE), "base_dtype": (str, _NONE),
    "parameters": (list,), "invocation_tokens": (list, _NONE), "lora_a": (str, _NONE), "lora_b": (str, _NONE),
}  # fmt: skip
_PARAMETER: dict[str, tuple[type, ...]] = {
    "name": (str,), "shape": (list,), "stream": (int,), "scaling": (int, float, _NONE),
}  # fmt: skip
_MOST_QUERIES = 1 << 20

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class JournalParameter:
    """A tuned parameter.

    Attributes:
        name: of the weight that it adapts, in the un-wrapped model; its own in a run on full parameters.
        shape: of the LoRA-B, (out, r), or its own.
        stream: of its noise.
        scaling: what the adapter's product is multiplied by, from alpha, the rank, and use_rslora. None for
            a parameter of the model.
    """

    name: str
    shape: tuple[int, ...]
    stream: int
    scaling: float | None


@dataclass(frozen=True)
class JournalHeader:
    """What a run is, in the order of the file. None stands for what the run's loop, or an earlier version of
    the format, did not say.

    Attributes:
        run_seed: as a signed 64-bit integer.
        queries: q, coefficients in each record.
        eps: size of a perturbation.
        lr: learning rate before the schedule, that of `optimizer`.
        lr_schedule: "constant", "linear" or "cosine".
        steps: planned for the run; the schedule spans them.
        normalize: differences are divided by the spread of the losses, not by eps.
        distribution: "gaussian", "rademacher" or "outer".
        estimator: "two_sided", "one_sided" or "centred".
        optimizer: what a step makes of its estimate.
        batch_size: rows in each step.
        data: a hash of the training rows.
        candidate_tokens: to which the loss is restricted; () for the whole vocabulary.
        base_fingerprint: :func:`mobizo_kernels.lora.model_fingerprint` of the model.
        base_dtype: the types in which its parameters are held, "int8", "int8-dynamic" or "int4"
            in a quantised program.
        parameters: in the order of the model.
        invocation_tokens: from which the adapters act (Activated LoRA); () for all tokens.
        lora_a: a hash of every LoRA-A; None in a run on full parameters, like the next.
        lora_b: a hash of every LoRA-B before the first step.
    """

    run_seed: int
    queries: int
    eps: float
    lr: float = field(init=False)
    lr_schedule: str | None
    steps: int | None
    normalize: bool
    distribution: str
    estimator: str
    optimizer: UpdateRule
    batch_size: int | None
    data: str | None
    candidate_tokens: tuple[int, ...] | None
    base_fingerprint: str | None
    base_dtype: str | None
    parameters: tuple[JournalParameter, ...]
    invocation_tokens: tuple[int, ...] | None
    lora_a: str | None
    lora_b: str | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", float(self.optimizer.lr))

    @property
    def of_parameters(self) -> bool:
        """Whether the run is one on full parameters. Earlier versions, which do not know of the adapter, are
        of adapters all the same.
        """
        return self.lora_a is None and self.invocation_tokens is not None

    def to_bytes(self) -> bytes:
        """The head of the file, checksum included."""
        values = {**asdict(self), "optimizer": self.optimizer.as_json()}
        text = json.dumps(values, allow_nan=False).encode()
        head = _PREFIX.pack(MAGIC, VERSION, len(text)) + text
        return head + _CRC.pack(zlib.crc32(head))

    def check_same(self, other: JournalHeader, path: PathLike) -> None:
        """Raise ValueError, naming the first field that differs, unless `other`, of a run, is the same."""
        for name in (part.name for part in fields(self)):
            there, here = getattr(self, name), getattr(other, name)
            if there != here:
                raise ValueError(f"journal {path}: {difference(name, there, here, 'in this run')}")


def difference(name: str, there: Any, here: Any, where: str) -> str:
    """Two unequal values of a field of headers in words; the first parameter that differs stands for all.

    Args:
        name: of the field.
        there: in the journal.
        here: its counterpart.
        where: that is.
    """
    if name == "parameters":
        longest = max(len(there), len(here))
        padded = [(*parameters, *[None] * (longest - len(parameters))) for parameters in (there, here)]
        there, here = next((a, b) for a, b in zip(*padded, strict=True) if a != b)
        if there is not None and here is not None and replace(there, scaling=here.scaling) == here:
            name, there, here = f"scaling of {here.name}", there.scaling, here.scaling
    if name == "optimizer":
        there, here = there.as_json(), here.as_json()
    there, here = (list(value) if isinstance(value, tuple) else value for value in (there, here))
    why = "; the run began with another adapter, such as a readout" if name == "lora_a" else ""
    return f"{name} is {there!r} there, but {here!r} {where}{why}"


def read_header(path: PathLike) -> JournalHeader:
    """The header of a journal, whatever its records are.

    Raises:
        OSError: if the file cannot be read.
        ValueError: as :func:`parse_header`.
    """
    return parse_header(Path(path).read_bytes(), Path(path))[0]


def parse_header(content: bytes, path: Path) -> tuple[JournalHeader, int, int]:
    """The header at the start of a file, where the records begin, and the version.

    Raises:
        ValueError: naming the file, if it is no journal, of a version to come, cut short, or damaged.
    """
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{path} is no journal: expected {MAGIC!r} at its start, got {content[:8]!r}")
    try:
        _, version, size = _PREFIX.unpack_from(content)
        if not 1 <= version <= VERSION:
            raise ValueError(f"journal {path}: expected version 1 to {VERSION} of the format, got {version}")
        end = _PREFIX.size + size
        (crc,) = _CRC.unpack_from(content, end)
    except struct.error as error:
        raise ValueError(f"journal {path}: its header is cut short") from error
    if zlib.crc32(content[:end]) != crc:
        raise ValueError(f"journal {path}: its header is damaged")
    try:
        header = _from_json(strict_json.loads_as_native(content[_PREFIX.size : end]), version)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"journal {path}: its header cannot be understood ({error})") from error
    return header, end + _CRC.size, version


def _from_json(values: Any, version: int) -> JournalHeader:
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    for since, added in _SINCE.items():
        if version < since:
            if early := sorted(added.keys() & values.keys()):
                raise ValueError(f"it has {early[0]}, of version {since}")
            values = {**values, **added}
    _check(values, _FIELDS)
    if version < 3:
        values["parameters"] = [_with_scaling(parameter) for parameter in values["parameters"]]
    for parameter in values["parameters"]:
        _check(parameter, _PARAMETER)
    parameters = tuple(
        JournalParameter(**{**parameter, "shape": tuple(parameter["shape"])})
        for parameter in values.pop("parameters")
    )
    with blaming("optimizer"):
        rule = UpdateRule.from_json(values.pop("optimizer"))
    rule = replace(rule, lr=values.pop("lr"))
    for name in ("candidate_tokens", "invocation_tokens"):
        values[name] = None if values[name] is None else tuple(values[name])
    header = JournalHeader(**values, optimizer=rule, parameters=parameters)
    if not 1 <= header.queries <= _MOST_QUERIES:
        raise ValueError(f"queries is {header.queries}")
    return header


def _with_scaling(parameter: dict[str, Any]) -> dict[str, Any]:
    if "scaling" in parameter:
        raise ValueError("it has scaling, of version 3")
    return {**parameter, "scaling": None}


def _check(values: dict[str, Any], types: dict[str, tuple[type, ...]]) -> None:
    """Raise ValueError unless there is exactly one value of each name, of one of its types; a list, but for
    that of the parameters, holds whole numbers. executorch_ops/trainer/files/journal.cpp asks the same.
    """
    if odd := sorted(types.keys() ^ values.keys()):
        raise ValueError(f"it {'lacks' if odd[0] in types else 'has the unknown'} {odd[0]}")
    for name, allowed in types.items():
        value = values[name]
        numbers = value if isinstance(value, list) and name != "parameters" else []
        if type(value) not in allowed or any(type(number) is not int for number in numbers):
            raise ValueError(f"{name} is {value!r}")
