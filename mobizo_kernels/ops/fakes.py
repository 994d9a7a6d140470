"""Fakes that follow from the schemas of csrc, whose arguments need no second declaration.

The ops that update parameters take a parameter, its state, the directions, and numbers that no check reads.
Names of state and an optional `lr` are all that tells their checks apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mobizo_kernels.ops.checks import check_length, check_one_float, check_update


def named(op: str, args: Sequence[Any]) -> dict[str, Any]:
    """The positional arguments of a call as the schema of mobizo::`op` names them, with its defaults."""
    given = iter(args)
    arguments = getattr(torch.ops.mobizo, op).default._schema.arguments
    return {a.name: next(given, a.default_value) for a in arguments if not a.kwarg_only}


def _update(op: str, args: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is written, the parameter first, and what stands behind it."""
    given = named(op, args)
    names = list(given)
    written = names[: names.index("seeds")]
    return {name: given.pop(name) for name in written}, given


def checked_param(op: str, args: Sequence[Any]) -> torch.Tensor:
    """The parameter of a call that may run."""
    written, given = _update(op, args)
    check_update(op, written, given["seeds"], given["coeffs"], given["distribution"], given.get("lr"))
    param: torch.Tensor = next(iter(written.values()))
    return param


def register_update(op: str) -> None:
    """The fakes of an op that returns the norm of a change, float32 [1], and of its form with `out`."""

    @torch.library.register_fake(f"mobizo::{op}")
    def _(*args: Any) -> torch.Tensor:
        return checked_param(op, args).new_empty(1, dtype=torch.float32)

    @torch.library.register_fake(f"mobizo::{op}.out")
    def _(*args: Any, out: torch.Tensor) -> torch.Tensor:
        check_one_float(op, "out", out, checked_param(op, args).device)
        return out


def register_foreach(op: str) -> None:
    """The fake of an op that updates lists of parameters and of their state."""

    @torch.library.register_fake(f"mobizo::{op}")
    def _(*args: Any) -> None:
        lists, given = _update(op, args)
        (_, params), *states = lists.items()
        for name, entries in (*states, ("streams", given["streams"])):
            check_length(op, name, entries, params)
        for index in range(len(params)):
            written = {f"{name}[{index}]": tensors[index] for name, tensors in lists.items()}
            check_update(op, written, given["seeds"], given["coeffs"], given["distribution"], given.get("lr"))
