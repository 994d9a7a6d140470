"""What all updates have in common: zo_update, zo_momentum, zo_adam and zo_sign, their .out and foreach forms,
against the numpy twins, to the bit, and what they refuse.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    assert_norm,
    assert_same_bits,
    directions,
    gaps_untouched,
    name_of,
    on_device,
    poisoned,
    strided,
)
from update_ops import UPDATES, WRONG, WRONG_LISTS, WRONG_OUT, BadArguments, UpdateOp

WITH_FOREACH = [op for op in UPDATES if op.lists]


@pytest.mark.parametrize("decay", [1.0, 0.875])
@pytest.mark.parametrize("shape", [(), (0, 2), (3,), (7, 19), (2, 2051)], ids=name_of)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("form", ["functional", "out"])
@pytest.mark.parametrize("op", UPDATES, ids=str)
def test_step(
    op: UpdateOp,
    form: str,
    dtype: torch.dtype,
    distribution: str,
    shape: tuple[int, ...],
    decay: float,
    rng: torch.Generator,
) -> None:
    tensors = op.tensors(shape, dtype, rng)
    args = op.arguments(directions(5, rng), 17, decay, distribution)
    *expected, expected_norm = op.reference(*tensors, *args)
    if form == "functional":
        norm = op.functional(*tensors, *args)
    else:
        norm = poisoned(1)
        assert op.out(*tensors, *args, out=norm) is norm
    for tensor, updated in zip(tensors, expected, strict=True):
        assert_same_bits(tensor, updated)
    assert_norm(norm, expected_norm)


@pytest.mark.parametrize("decay", [1.0, 0.5])
@pytest.mark.parametrize("op", UPDATES, ids=str)
def test_non_contiguous(op: UpdateOp, decay: float, rng: torch.Generator) -> None:
    values = op.tensors((13, 9), torch.float32, rng)
    args = op.arguments(directions(3, rng), 2, decay)
    *expected, expected_norm = op.reference(*values, *args)
    tensors = [
        value.t().contiguous().t() if place == 1 else strided(value) for place, value in enumerate(values)
    ]
    assert_norm(op.functional(*tensors, *args), expected_norm)
    for place, (tensor, updated) in enumerate(zip(tensors, expected, strict=True)):
        assert_same_bits(tensor.contiguous(), updated)
        assert place == 1 or gaps_untouched(tensor)


@pytest.mark.parametrize("op", WITH_FOREACH, ids=str)
def test_foreach_is_a_step_of_each(op: UpdateOp, rng: torch.Generator) -> None:
    shapes = [(3, 5), (0,), (2050,), (), (129, 3)]
    each = [op.tensors(shape, DTYPES[i % 3], rng) for i, shape in enumerate(shapes)]
    each[0] = (each[0][0], *map(strided, each[0][1:]))
    each[4] = (*map(strided, each[4][:2]), *each[4][2:])
    streams = [3, -4, 2**63 - 1, 0, -(2**63)]
    some = directions(4, rng)
    for distribution in DISTRIBUTIONS:
        expected = [
            op.reference(*tensors, *op.arguments(some, stream, 0.95, distribution))[:-1]
            for tensors, stream in zip(each, streams, strict=True)
        ]
        lists = [list(tensors) for tensors in zip(*each, strict=True)]
        op.foreach(*lists, *op.arguments(some, streams, 0.95, distribution))
        for tensors, updated in zip(each, expected, strict=True):
            for tensor, wanted in zip(tensors, updated, strict=True):
                assert_same_bits(tensor.contiguous(), wanted)
    op.foreach(*([] for _ in op.names), *op.arguments(some, [], 1.0))


def refusals(*common: BadArguments, lists: bool = False) -> pytest.MarkDecorator:
    """Parametrise a test by an op, by arguments that it refuses, and by what it says of them."""
    rows = []
    for op in WITH_FOREACH if lists else UPDATES:
        own = [*op.wrong, *op.wrong_lists] if lists else op.wrong
        for arguments, message in (*(row for some in common for row in some), *own):
            name = f"{op}-{name_of(arguments)}-{message}"
            rows.append(pytest.param(op, arguments, message, id=name))
    return pytest.mark.parametrize(("op", "arguments", "message"), rows)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@refusals(WRONG, WRONG_OUT)
def test_refuses_and_writes_nothing(
    op: UpdateOp, arguments: dict[str, Any], message: str, device: str
) -> None:
    tensors = {name: torch.ones(3) for name in op.names}
    call = on_device({**tensors, **op.accepted(), "stream": 0, **arguments}, device)
    with pytest.raises(RuntimeError, match=f"mobizo::{op}: .*{message}"):
        (op.out if "out" in call else op.functional)(**call)
    if device == "cpu":
        assert all(bool((call[name] == 1).all()) for name in (*op.names, "out") if name in call)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@refusals(WRONG, WRONG_LISTS, lists=True)
def test_foreach_refuses_and_writes_nothing(
    op: UpdateOp, arguments: dict[str, Any], message: str, device: str
) -> None:
    call = on_device({**op.accepted(), "streams": [0, 1], **arguments}, device)
    lists = {
        several: [torch.ones(5, device=device), call.pop(name, torch.ones(3, device=device))]
        for several, name in zip(op.lists, op.names, strict=True)
    }
    with pytest.raises(RuntimeError, match=f"mobizo::{op.foreach_name}: .*{message}"):
        op.foreach(**{**lists, **call})
    if device == "cpu":
        assert all(bool((tensor == 1).all()) for tensors in lists.values() for tensor in tensors)
