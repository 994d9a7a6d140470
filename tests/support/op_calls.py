"""Calls of every op that changes its arguments: what the contract tests of all backends go through."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

SEEDS, COEFFS, LR = torch.tensor([1, 2]), torch.tensor([0.5, -0.25]), torch.tensor([0.1])
Tensors = dict[str, torch.Tensor]


class Changing(NamedTuple):
    """An op: the names of what it changes, arguments for it, and a call of it.

    `given` makes new tensors on each call; `call` takes what runs the op, and the tensors by name.
    """

    written: list[str]
    given: Callable[[], Tensors]
    call: Callable[..., Any]


def torch_op(name: str) -> Callable[..., Any]:
    """torch_op("zo_update.out"): the op of torch.ops.mobizo."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.mobizo, packet), overload or "default")


def _ones(*names: str) -> Tensors:
    return {name: torch.ones(4, 4) for name in names}


def _directions(lr: bool = False) -> Tensors:
    given = {"seeds": SEEDS, "coeffs": COEFFS, **({"lr": LR} if lr else {})}
    return {name: tensor.clone() for name, tensor in given.items()}


def _lora() -> Tensors:
    """Input and output of one width, so that each can be the other."""
    return {**_ones("base", "x"), "lora_a": torch.ones(2, 4), "lora_b": torch.ones(4, 2), **_directions()}


def _update(name: str, written: list[str], lr: bool, *numbers: float) -> dict[str, Changing]:
    """The forms of an update: with a norm, into a norm, and of a list with one element."""

    def given() -> Tensors:
        return {**_ones(*written), **_directions(lr)}

    def single(op: Callable[..., Any], **tensors: torch.Tensor) -> Any:
        return op(*tensors.values(), 7, *numbers)

    def into(op: Callable[..., Any], out: torch.Tensor, **tensors: torch.Tensor) -> Any:
        return op(*tensors.values(), 7, *numbers, out=out)

    def foreach(op: Callable[..., Any], **tensors: torch.Tensor) -> Any:
        lists = [[tensors.pop(one)] for one in written]
        return op(*lists, *tensors.values(), [7], *numbers)

    forms = {
        name: Changing(written, given, single),
        f"{name}.out": Changing([*written, "out"], lambda: {**given(), "out": torch.ones(1)}, into),
    }
    if name != "zo_update":
        forms[f"foreach_{name}_"] = Changing(written, given, foreach)
    return forms


OPS: dict[str, Changing] = {
    "noise.out": Changing(
        ["out"],
        lambda: {"out": torch.ones(4), "seed": torch.tensor([3])},
        lambda op, out, seed: op([4], seed, 7, out=out),
    ),
    "perturb_": Changing(
        ["self"], lambda: {**_ones("self"), **_directions()}, lambda op, **t: op(*t.values(), 7)
    ),
    "foreach_perturb_": Changing(
        ["self"],
        lambda: {**_ones("self"), **_directions()},
        lambda op, **t: op([t.pop("self")], *t.values(), [7]),
    ),
    **_update("zo_update", ["param"], False),
    **_update("zo_momentum", ["param", "momentum"], False, 0.9),
    **_update("zo_adam", ["param", "exp_avg", "exp_avg_sq"], True, 0.9, 0.99, 1e-8),
    **_update("zo_sign", ["param"], True),
    "mp_lora_": Changing(["base"], _lora, lambda op, **t: op(*t.values(), 0.5, 7)),
    "mp_lora.out": Changing(
        ["out"], lambda: {**_lora(), **_ones("out")}, lambda op, out, **t: op(*t.values(), 0.5, 7, out=out)
    ),
    "mp_outer_": Changing(
        ["base"], lambda: {**_ones("base", "x"), **_directions()}, lambda op, **t: op(*t.values(), 7)
    ),
}
WRITTEN = [(op, name) for op, case in OPS.items() for name in case.written]
# What a gradient can be asked of.
DIFFERENTIABLE = [(op, name) for op in OPS for name, t in OPS[op].given().items() if t.is_floating_point()]
# What is written, and every other argument.
PAIRS = [(op, name, other) for op, name in WRITTEN for other in OPS[op].given() if other != name]


def named(name: str) -> str:
    """A pattern for an argument in a message: one of a list goes by the name of the list."""
    plurals = {"momentum": "momenta"}
    return f"({name}|{plurals.get(name, name + 's')}\\[0\\]|{name}\\[0\\])"


def sharing(op: str, written: str, other: str, device: str = "cpu") -> tuple[Tensors, str]:
    """Arguments of which two share a few bytes, and a pattern for what is said of it."""
    tensors = {name: tensor.to(device) for name, tensor in OPS[op].given().items()}
    first, second = tensors[written], tensors[other]
    memory = torch.zeros(first.nbytes + second.nbytes + 16, dtype=torch.uint8, device=device)
    begin = (first.nbytes - 1) // 8 * 8  # a place for int64 in the last element of the first
    for name, start in ((written, 0), (other, begin)):
        value = tensors[name]
        tensors[name] = memory[start : start + value.nbytes].view(value.dtype).view(value.shape)
    pair = f"({named(written)} and {named(other)}|{named(other)} and {named(written)})"
    return tensors, f"{re.escape(op.partition('.')[0])}: {pair} must not share memory"
