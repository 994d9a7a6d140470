"""What holds for all inputs of an update, on whichever backend: it writes what its numpy twin says.

Hypothesis draws the inputs: shapes without elements, views with gaps, zeros, infinities, NaN and denormals in
parameter, state, coefficients, rate and decay, seeds and streams at the ends of their range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from helpers import DISTRIBUTIONS, DTYPES, SEEDS, assert_same_bits, gaps_untouched, strided
from hypothesis import strategies as st
from update_ops import UpdateOp

Shape = tuple[int, ...]

NUMBERS = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-38, 6e-8, 6.5e4, 3e38, -3e38, math.inf, -math.inf, math.nan]
) | st.floats(width=32)
WORDS = st.sampled_from(SEEDS) | st.integers(-(2**63), 2**63 - 1)
SHAPES: st.SearchStrategy[Shape] = (
    st.integers(0, 4200).map(lambda size: (size,))
    | st.lists(st.integers(0, 17), max_size=3).map(tuple)
    | st.tuples(st.integers(1, 3), st.integers(1000, 2100))
)
# What a rule can be told; outside of it the optimizers refuse.
RULE_NUMBERS: dict[str, Sequence[float]] = {
    "beta": (0.0, 0.5, 0.9, 1.0),
    "beta1": (0.0, 0.9, 1.0),
    "beta2": (0.0, 0.99, 0.9999),
    "eps": (0.0, 1e-8, 1e-3),
}


class Call(NamedTuple):
    """What an update is given: the tensors that it writes, and all else."""

    tensors: tuple[torch.Tensor, ...]
    arguments: tuple[Any, ...]


@st.composite
def filled(draw: st.DrawFn, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    """Normal numbers, with drawn ones anywhere among them."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values, some = torch.randn(shape, generator=rng), torch.tensor(draw(st.lists(NUMBERS, max_size=6)))
    if values.numel() and len(some):
        places = torch.randint(values.numel(), (1 + values.numel() // 2,), generator=rng)
        values.view(-1)[places] = some[torch.randint(len(some), places.shape, generator=rng)]
    return values.to(dtype)


@st.composite
def directions(draw: st.DrawFn, most: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Seeds and coefficients, none included."""
    seeds = draw(st.lists(WORDS, max_size=most))
    coeffs = draw(st.lists(NUMBERS, min_size=len(seeds), max_size=len(seeds)))
    return torch.tensor(seeds, dtype=torch.int64), torch.tensor(coeffs, dtype=torch.float32)


@st.composite
def calls(draw: st.DrawFn, update: UpdateOp, shapes: st.SearchStrategy[Shape] = SHAPES) -> Call:
    """Of an update, with tensors of one of `shapes`."""
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    tensors = [draw(filled(shape, kind)) for kind in (dtype, *[torch.float32] * len(update.state))]
    told = replace(
        update, numbers={name: draw(st.sampled_from(RULE_NUMBERS[name])) for name in update.numbers}
    )
    arguments = told.arguments(
        draw(directions()),
        draw(WORDS),
        draw(NUMBERS),
        draw(st.sampled_from(DISTRIBUTIONS)),
        torch.tensor([draw(NUMBERS)], dtype=torch.float32),
    )
    return Call(tuple(map(draw(st.sampled_from([torch.clone, strided, _columns])), tensors)), arguments)


def _columns(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with the first index running fastest in memory."""
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def assert_is_the_twin(update: UpdateOp, call: Call, run: Callable[..., object]) -> None:
    """`run`, called as the op is, writes what the numpy twin does, and nothing between the elements."""
    *expected, _ = update.reference(*(tensor.contiguous() for tensor in call.tensors), *call.arguments)
    run(*call.tensors, *call.arguments)
    for tensor, wanted in zip(call.tensors, expected, strict=True):
        assert_same_bits(tensor.contiguous(), wanted)
        assert tensor._base is None or not tensor.numel() or tensor.is_contiguous() or _gaps(tensor)


def _gaps(tensor: torch.Tensor) -> bool:
    base = tensor._base
    assert base is not None
    return base.numel() == tensor.numel() or gaps_untouched(tensor)
