"""Directions "outer" in Triton, where rows and columns matter: the numpy twin's bits, and sums of mp_lora."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, groupby
from typing import Any

import pytest
import torch
from guarded_memory import assert_guarded, guarded
from helpers import (
    DTYPES,
    KNOWN_ANSWERS,
    SEEDS,
    assert_norm_of_gpu,
    assert_same_bits,
    directions,
    gaps_untouched,
    name_of,
    poisoned,
    signed,
)
from mp_lora_problems import assert_close, problem
from update_ops import UPDATES, UpdateOp

from mobizo_kernels import reference
from mobizo_kernels.triton.mp_lora_linear import fused
from mobizo_kernels.triton.signs import LARGEST_OUTER, check_outer, draw_signs

# Runs of 1, 2, 4 and 8 neighbours, one row or column, more columns than a block has, blocks with a tail.
SHAPES = [
    (1, 1), (5, 7), (1, 1025), (1025, 1), (6, 130), (36, 20), (40, 64), (3, 4, 11), (8, 2, 4), (2, 2051),
    (16, 1040), (33, 96),
]  # fmt: skip
MANY_SHAPES = [(3, 5), (0, 2), (2, 0), (41, 100), (), (2048,), (129, 3), (4, 2, 8), (1, 1100)]


def expected_noise(shape: tuple[int, ...], seed: int, stream: int) -> torch.Tensor:
    return torch.from_numpy(reference.noise(shape, seed, stream, "outer"))


def test_known_answers(op: Callable, device: str) -> None:
    for (seed, stream, rows, columns), answers in groupby(KNOWN_ANSWERS["outer"], key=lambda row: row[:4]):
        on = torch.tensor(signed(seed), device=device)
        z = op("noise")([int(rows), int(columns)], on, signed(stream), "outer").cpu()
        got = z.view(-1).numpy().view("uint32")
        for *_, element, bits in answers:
            assert f"{int(got[int(element)]):08x}" == bits


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", [(), (9,), (0, 3), (3, 0), *SHAPES], ids=name_of)
def test_noise(shape: tuple[int, ...], dtype: torch.dtype, op: Callable, device: str) -> None:
    args = (list(shape), torch.tensor(-3, device=device), 4, "outer")
    expected = expected_noise(shape, -3, 4).to(dtype)
    out, memory = guarded(poisoned(*shape, dtype=dtype), device)
    assert op("noise.out")(*args, dtype=dtype, out=out) is out
    assert_same_bits(out.cpu(), expected)
    assert_guarded(out, memory)
    assert_same_bits(op("noise")(*args, dtype=dtype).cpu(), expected)


def test_strided_out(op: Callable, device: str) -> None:
    out = poisoned(11, 15).to(device)[1::2, 1::2]
    op("noise.out")([5, 7], torch.tensor(5, device=device), 6, "outer", out=out)
    assert_same_bits(out.contiguous().cpu(), expected_noise((5, 7), 5, 6))
    assert gaps_untouched(out)


@pytest.mark.parametrize("size", [1, 127, 128, 129, 16384, 16385, 70001])
def test_signs_are_those_of_the_contract(size: int, device: str) -> None:
    """By one program and by several, whole Philox calls and parts of them."""
    seeds = torch.tensor([7, -1], device=device)
    words = draw_signs(seeds, -(2**63), size - 1, 1).cpu()
    bits = (words[:, :, None] >> torch.arange(32)) & 1
    for row, seed in zip(bits.flatten(1), seeds.tolist(), strict=True):
        expected = reference.noise(size, seed, -(2**63), "rademacher")
        assert torch.equal(1.0 - 2.0 * row[:size], torch.from_numpy(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_perturb(
    shape: tuple[int, ...], dtype: torch.dtype, op: Callable, device: str, rng: torch.Generator
) -> None:
    values = torch.randn(shape, generator=rng).to(dtype)
    seeds, coeffs = directions(3, rng)
    stream, decay = SEEDS[sum(shape) % len(SEEDS)], (1.0, 0.9)[sum(shape) % 2]
    expected = reference.perturb(values, seeds, coeffs, stream, decay, "outer")
    param, memory = guarded(values, device)
    op("perturb_")(param, seeds.to(device), coeffs.to(device), stream, decay, "outer")
    assert_same_bits(param.cpu(), expected)
    assert_guarded(param, memory)


def moved(arguments: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    return tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)


@pytest.mark.parametrize("shape", [(37, 20), (1, 1100), (3, 4, 8), (9,), (0, 4), (4, 0)], ids=name_of)
@pytest.mark.parametrize("case", UPDATES, ids=str)
def test_updates(
    case: UpdateOp, shape: tuple[int, ...], op: Callable, device: str, rng: torch.Generator
) -> None:
    values = case.tensors(shape, torch.bfloat16, rng)
    given = case.arguments(directions(3, rng), 17, 0.875, "outer")
    *expected, expected_norm = case.reference(*values, *given)
    held = [guarded(value, device) for value in values]
    norm = op(case.name)(*(tensor for tensor, _ in held), *moved(given, device))
    for (tensor, memory), wanted in zip(held, expected, strict=True):
        assert_same_bits(tensor.cpu(), wanted)
        assert_guarded(tensor, memory)
    assert_norm_of_gpu(norm, expected_norm)


@pytest.mark.parametrize("case", UPDATES, ids=str)
def test_foreach(case: UpdateOp, op: Callable, device: str, rng: torch.Generator) -> None:
    """Matrices and others, of three dtypes, one of them strided; the second call finds the tables."""
    each = [case.tensors(shape, DTYPES[i % 3], rng) for i, shape in enumerate(MANY_SHAPES)]
    held = [[guarded(v, device, before=i % 2) for v in values] for i, values in enumerate(each)]
    strided = poisoned(11, 15).to(device)[1::2, 1::2].copy_(each[0][0][:1].expand(5, -1)[:, :1])
    name = "foreach_perturb_" if case.name == "zo_update" else case.foreach_name
    expected_strided = strided.cpu()
    state = [make((5, 7), rng) for make in case.state.values()]
    expected_state = [expected_strided, *state]
    state = [tensor.to(device, copy=True) for tensor in state]
    streams = [3, -4, 2**63 - 1, 0, -(2**63), 5, 6, 7, 8]
    seeds_and_coeffs = directions(3, rng)
    for _ in range(2):
        each = [
            case.reference(*values, *case.arguments(seeds_and_coeffs, stream, 0.95, "outer"))[:-1]
            for values, stream in zip(each, streams, strict=True)
        ]
        expected_state = case.reference(*expected_state, *case.arguments(seeds_and_coeffs, 9, 0.95, "outer"))[
            :-1
        ]
        lists = [[tensor for tensor, _ in column] for column in zip(*held, strict=True)]
        for column, tensor in zip(lists, (strided, *state), strict=True):
            column.append(tensor)
        given = case.arguments(seeds_and_coeffs, [*streams, 9], 0.95, "outer")
        assert op(name)(*lists, *moved(given, device)) is None
        for row, expected in zip(held, each, strict=True):
            for (tensor, memory), wanted in zip(row, expected, strict=True):
                assert_same_bits(tensor.cpu(), wanted)
                assert_guarded(tensor, memory)
        for tensor, wanted in zip((strided, *state), expected_state, strict=True):
            assert_same_bits(tensor.contiguous().cpu(), wanted)
    assert gaps_untouched(strided)


@pytest.mark.parametrize("count", [0, 1, 17], ids="{}-seeds".format)
def test_any_number_of_seeds(count: int, op: Callable, device: str, rng: torch.Generator) -> None:
    values = torch.randn(40, 30, generator=rng)
    seeds, coeffs = directions(count, rng)
    expected = reference.perturb(values, seeds, coeffs, -5, 1.0, "outer")
    args = (seeds.to(device), coeffs.to(device))
    param = values.to(device, copy=True)
    assert_same_bits(op("perturb_")(param, *args, -5, distribution="outer").cpu(), expected)
    params = [values.to(device, copy=True)]
    op("foreach_perturb_")(params, *args, [-5], distribution="outer")
    assert_same_bits(params[0].cpu(), expected)


def test_extreme_values(op: Callable, device: str) -> None:
    extremes = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-45]).repeat(5, 3)
    for coefficient in (0.0, 1e-45, 3e38, torch.inf, torch.nan):
        seeds, coeffs = torch.tensor([1, -2]), torch.tensor([coefficient, -coefficient / 3])
        expected = reference.perturb(extremes, seeds, coeffs, 9, 1.0, "outer")
        got = op("perturb_")(
            extremes.to(device, copy=True), seeds.to(device), coeffs.to(device), 9, 1.0, "outer"
        )
        assert_same_bits(got.cpu(), expected)


def test_too_many_rows_and_columns_are_refused() -> None:
    check_outer("noise", "size", (LARGEST_OUTER - 1, 1), "outer")
    check_outer("noise", "size", (2**40,), "outer")
    check_outer("noise", "size", (2**40, 1), "rademacher")
    with pytest.raises(RuntimeError, match=r"mobizo::noise: size must have at most .* 'outer', got shape"):
        check_outer("noise", "size", (LARGEST_OUTER, 1), "outer")


# rows, in, out, rank, groups: one row in a group, tiles of rows of several groups, columns split, chunks.
ADAPTERS = [
    (7, 20, 70, 4, 7),
    (64, 1100, 33, 16, 16),
    (90, 40, 130, 31, 5),
    (130, 64, 64, 8, 2),
    (6, 9, 40, 130, 3),
]


@pytest.mark.parametrize(("sizes", "dtype"), zip(ADAPTERS, cycle(DTYPES)), ids=name_of)
def test_mp_lora(
    sizes: tuple[int, int, int, int, int], dtype: torch.dtype, op: Callable, device: str
) -> None:
    p = problem(sizes, device, (dtype, torch.float32, dtype), "outer")
    p.coeffs[0] = 0.0
    got = op("mp_lora")(*p)
    assert_close(got, p)
    assert_same_bits(op("mp_lora_")(*p), got)


@pytest.mark.filterwarnings("ignore:invalid value")  # of NumPy, in the interpreter
@pytest.mark.parametrize("special", [torch.inf, -torch.inf, torch.nan, 3e38])
def test_a_clean_group_is_lora(special: float, op: Callable, device: str) -> None:
    """Whatever its rows hold: nothing of a direction whose coefficient is 0 is added."""
    p = problem((12, 37, 67, 5, 3), device, distribution="outer")
    p.coeffs[1] = 0.0
    p.x[5, 3] = special
    plain = op("mp_lora")(*p._replace(coeffs=torch.zeros_like(p.coeffs), distribution="gaussian"))
    assert_same_bits(op("mp_lora")(*p)[4:8].cpu(), plain[4:8].cpu())
    clean = p._replace(coeffs=torch.zeros_like(p.coeffs))
    assert_same_bits(op("mp_lora")(*clean).cpu(), plain.cpu())


@pytest.mark.filterwarnings("ignore:invalid value")  # of NumPy, in the interpreter
def test_a_clean_group_of_the_fused_linear_is_lora(device: str) -> None:
    mix = (torch.bfloat16, torch.bfloat16, torch.float32)
    p = problem((12, 64, 70, 5, 3), device, mix, "outer")
    p.coeffs[:] = 0.0
    p.x[5, 3] = torch.inf
    weight = torch.ones(70, 64, dtype=torch.bfloat16, device=device)
    plain = fused(p.x, weight, None, *p._replace(distribution="gaussian")[2:])
    assert_same_bits(fused(p.x, weight, None, *p[2:]).cpu(), plain.cpu())
