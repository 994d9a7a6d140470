"""What a program says of itself, so that whoever runs it needs no other file: docs/formats.md.

executorch_ops/trainer/program/description.cpp is the native twin: the same fields, checks and sentences.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from mobizo_kernels.errors import blaming
from mobizo_kernels.executorch.description_generation import GenerationDescription, read_generation
from mobizo_kernels.executorch.description_model import (
    AdapterDescription,
    HeadDescription,
    ModelDescription,
    read_adapter,
    read_head,
    read_model,
)
from mobizo_kernels.executorch.description_readers import (
    Reader,
    boolean,
    check_size,
    list_of,
    object_of,
    or_null,
    text,
    whole,
)
from mobizo_kernels.executorch.description_texts import TextsDescription, read_texts
from mobizo_kernels.executorch.inputs import MethodInput, check_inputs, method_inputs, require_lowering
from mobizo_kernels.files import strict_json
from mobizo_kernels.files.strict_json import of_kind
from mobizo_kernels.optim import UpdateRule

FORMAT = 1
DELEGATED_FORMAT = 2
"""Of a delegated program: format 1 with what it lowers its adapters to, and the inputs of its methods."""
DESCRIPTION = "mobizo_description"
"""The method of a program that gives it."""

_LEAST = {
    "queries": 1, "batch_size": 1, "groups": 1, "min_length": 1, "max_length": 1, "targets_per_row": 1,
    "vocabulary": 1, "pad_token": 0, "evaluation_rows": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a training program was made for, in the order of the file.

    Attributes:
        versions: of the packages that made it, by their names.
        model: that was exported.
        quantization: of the base weights, "none", "int8", "int8-dynamic" or "int4".
        queries: q.
        batch_size: B, rows of a step.
        groups: G, copies of the batch: 2q (two-sided), q + 1 (one-sided) or q.
        estimator: "two_sided", "one_sided" or "centred".
        distribution: of the directions, "gaussian", "rademacher" or "outer".
        optimizer: the rule of the update.
        min_length: fewest tokens of a row's input, `max_length` if it is always that.
        max_length: most of them.
        dynamic_length: whether they may vary.
        targets_per_row: K, most tokens to predict in a row.
        invocation_tokens: from whose last occurrence on the adapters act (Activated LoRA), or None.
        tail_length: n, most tokens of a row's input from there on; None without invocation tokens.
        candidate_tokens: to which the softmax is restricted, or None.
        vocabulary: size of the model's.
        pad_token: what fills rows up.
        evaluation_rows: E, rows of the method `evaluate`.
        tokenizer: :func:`mobizo_kernels.data.tokenizer_fingerprint` of the data that it takes; None for any.
        adapter: that it trains.
        lowering: of the adapters: "custom-op", our ops on buffers of the program; "delegated", stock
            operators on inputs, see :func:`method_inputs`.
        head: the LM head, if a readout can be made with the program; then what is added to its rows of the
            candidate tokens is the last input of `train_step` and `evaluate`.
        texts: how texts become its rows; None of a program that takes tokens alone.
        generation: of a program with the method `next_logits`, else None.

    Raises:
        ValueError: naming the field, if one is out of range or contradicts the rest.
    """

    versions: dict[str, str]
    model: ModelDescription
    quantization: str
    queries: int
    batch_size: int
    groups: int
    estimator: str
    distribution: str
    optimizer: UpdateRule
    min_length: int
    max_length: int
    dynamic_length: bool
    targets_per_row: int
    invocation_tokens: tuple[int, ...] | None
    tail_length: int | None
    candidate_tokens: tuple[int, ...] | None
    vocabulary: int
    pad_token: int
    evaluation_rows: int
    tokenizer: str | None
    adapter: AdapterDescription
    lowering: str = "custom-op"
    head: HeadDescription | None = None
    texts: TextsDescription | None = None
    generation: GenerationDescription | None = None

    def __post_init__(self) -> None:
        require_lowering(self.lowering, self.distribution)
        for name, least in _LEAST.items():
            with blaming(name):
                check_size(getattr(self, name), least)
        groups = {"two_sided": 2 * self.queries, "one_sided": self.queries + 1, "centred": self.queries}
        if self.estimator not in groups:
            raise ValueError(f"estimator must be one of {', '.join(groups)}, got '{self.estimator}'")
        if self.groups != groups[self.estimator]:
            raise ValueError(
                f"groups must be {groups[self.estimator]} for {self.queries} queries {self.estimator}, "
                f"got {self.groups}"
            )
        if self.max_length < self.min_length:
            raise ValueError(f"max_length must be at least {self.min_length}, got {self.max_length}")
        if self.pad_token >= self.vocabulary:
            raise ValueError(f"pad_token must be below {self.vocabulary}, got {self.pad_token}")
        self._check_tail()
        if self.candidate_tokens is not None and len(self.candidate_tokens) < 2:
            raise ValueError("candidate_tokens must be at least 2")
        names = [parameter.name for parameter in self.adapter.parameters]
        if not names:
            raise ValueError("the adapter has no parameters")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the adapter has two parameters called '{name}'")
        if self.head is not None:
            self._check_head(self.head)
        if self.texts is not None:
            self._check_texts(self.texts)
        if self.generation is not None:
            with blaming("generation"):
                self.generation.check_tokens(self.vocabulary)

    def _check_texts(self, texts: TextsDescription) -> None:
        if self.tokenizer is None:
            raise ValueError("texts needs tokenizer")
        if texts.prompt is not None and len(texts.prompt.words) != len(self.candidate_tokens or ()):
            raise ValueError(
                f"texts: prompt: expected {len(self.candidate_tokens or ())} words, one for each of "
                f"candidate_tokens, got {len(texts.prompt.words)}"
            )

    def _check_head(self, head: HeadDescription) -> None:
        if self.candidate_tokens is None:
            raise ValueError("head needs candidate_tokens")
        for token in self.candidate_tokens:
            if not 0 <= token < head.shape[0]:
                most = head.shape[0] - 1
                raise ValueError(
                    f"candidate_tokens must be from 0 to {most}, the rows of the head, got {token}"
                )
        if head.rank > len(self.candidate_tokens):
            raise ValueError(f"head: rank must be at most {len(self.candidate_tokens)}, got {head.rank}")

    def _check_tail(self) -> None:
        invocation, tail = self.invocation_tokens, self.tail_length
        if (invocation is None) != (tail is None):
            raise ValueError("invocation_tokens and tail_length must be both given, or both null")
        if invocation is None or tail is None:
            return
        if not invocation:
            raise ValueError("invocation_tokens must be at least 1")
        if not len(invocation) <= tail < self.max_length:
            raise ValueError(
                f"tail_length must be from {len(invocation)} to {self.max_length - 1}, got {tail}"
            )

    @property
    def text(self) -> str:
        """The JSON that a program holds."""
        values = {"format": FORMAT, **asdict(self), "optimizer": self.optimizer.as_json()}
        if self.delegated:
            values["format"] = DELEGATED_FORMAT
            values["inputs"] = {
                method: [asdict(value) for value in inputs] for method, inputs in self.inputs.items()
            }
        else:
            del values["lowering"]
        for name in _OPTIONAL:
            if values[name] is None:
                del values[name]
        return json.dumps(values, allow_nan=False)

    @property
    def delegated(self) -> bool:
        """Whether whoever runs the program keeps LoRA-B, and gives it to the methods."""
        return self.lowering == "delegated"

    @property
    def inputs(self) -> dict[str, tuple[MethodInput, ...]]:
        """Those of `train_step` and `evaluate` of a delegated program, in their order; {} of others."""
        return method_inputs(self) if self.delegated else {}


def parse_description(text: str) -> Description:
    """The description whose :attr:`Description.text` this is.

    Raises:
        ValueError: naming the field, if it is no JSON, of another format, or if a field is missing, unknown,
            of the wrong type, or contradicts the rest.
    """
    values = of_kind(dict, strict_json.loads_as_native(text.encode()))
    if "format" not in values:
        raise ValueError("'format' is missing")
    with blaming("format"):
        found = of_kind(int, values.pop("format"))
        check_size(found, 1)
    if found == DELEGATED_FORMAT:
        description, inputs = _delegated(values)
        with blaming("inputs"):
            check_inputs(description.inputs, inputs)
        return description
    if found != FORMAT:
        raise ValueError(f"expected a program of format {FORMAT} or {DELEGATED_FORMAT}, got {found}")
    return object_of(Description, _MEMBERS, _OPTIONAL)(values)


def _versions(value: Any) -> dict[str, str]:
    return object_of(dict, dict.fromkeys(of_kind(dict, value), text))(value)


_MEMBERS: dict[str, Reader] = {
    "versions": _versions,
    "model": read_model,
    **dict.fromkeys(("quantization", "estimator", "distribution"), text),
    **dict.fromkeys(_LEAST, whole),
    "optimizer": UpdateRule.from_json,
    "dynamic_length": boolean,
    "invocation_tokens": or_null(list_of(whole)),
    "tail_length": or_null(whole),
    "candidate_tokens": or_null(list_of(whole)),
    "tokenizer": or_null(text),
    "adapter": read_adapter,
}

_OPTIONAL: dict[str, Reader] = {
    "head": read_head,
    "texts": read_texts,
    "generation": read_generation,
}

_inputs = list_of(object_of(MethodInput, {"name": text, "dtype": text, "shape": list_of(whole)}))


def _delegated_only(value: Any) -> str:
    if text(value) != "delegated":
        raise ValueError(f"expected delegated in a program of format {DELEGATED_FORMAT}, got '{value}'")
    return "delegated"


def _with_inputs(inputs: Any, **members: Any) -> tuple[Description, dict[str, tuple[MethodInput, ...]]]:
    return Description(**members), inputs


_delegated = object_of(
    _with_inputs,
    {
        **_MEMBERS,
        "lowering": _delegated_only,
        "inputs": object_of(dict, dict.fromkeys(("train_step", "evaluate"), _inputs)),
    },
    _OPTIONAL,
)
