"""noise, and the device functions that every kernel draws from, against known answers and the numpy twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from guarded_memory import assert_guarded, guarded, moved
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    FLAT_DISTRIBUTIONS,
    KNOWN_ANSWERS,
    SEEDS,
    assert_same_bits,
    covering,
    gaps_untouched,
    name_of,
    poisoned,
    signed,
)

from mobizo_kernels import reference
from mobizo_kernels.triton.matrix import chunks_of, noise_of_b, width_of
from mobizo_kernels.triton.philox import noise_by_element, noise_by_quad, noise_run, philox

# Around whole accesses to memory (4 and 8 elements), counters (4 and 128) and blocks (2048).
SIZES = (0, 1, 3, 4, 5, 7, 8, 9, 127, 128, 129, 2047, 2048, 2049, 5003)
FIRST_ELEMENTS = (0, 2048, 2**31 - 2048, 2**32, 2**34 - 2048, 2**34 + 2048, 2**38, 2**52 + 2**34 - 2048)


def expected_noise(size: Any, seed: int, stream: int, distribution: str, start: int = 0) -> torch.Tensor:
    return torch.from_numpy(reference.noise(size, seed, stream, distribution, start))


@triton.jit(do_not_specialize=["stream"])
def words_kernel(out, seed, stream, counters, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    counter = tl.load(counters + index)
    w0, w1, w2, w3 = philox(tl.load(seed), stream, counter.to(tl.uint32), (counter >> 32).to(tl.uint32))
    tl.store(out + 4 * index, w0.to(tl.int32, bitcast=True))
    tl.store(out + 4 * index + 1, w1.to(tl.int32, bitcast=True))
    tl.store(out + 4 * index + 2, w2.to(tl.int32, bitcast=True))
    tl.store(out + 4 * index + 3, w3.to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=["stream"])
def elements_kernel(out, seed, stream, elements, COUNT: tl.constexpr, DISTRIBUTION: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(out + index, noise_by_element(tl.load(seed), stream, tl.load(elements + index), DISTRIBUTION))


@triton.jit(do_not_specialize=["stream"])
def quads_kernel(out, seed, stream, quads, COUNT: tl.constexpr, DISTRIBUTION: tl.constexpr):
    index = tl.arange(0, COUNT)
    z0, z1, z2, z3 = noise_by_quad(tl.load(seed), stream, tl.load(quads + index), DISTRIBUTION)
    tl.store(out + 4 * index, z0)
    tl.store(out + 4 * index + 1, z1)
    tl.store(out + 4 * index + 2, z2)
    tl.store(out + 4 * index + 3, z3)


@triton.jit(do_not_specialize=["stream"])
def run_kernel(
    out, seed, stream, first, BLOCK: tl.constexpr, VECTOR: tl.constexpr, DISTRIBUTION: tl.constexpr
):
    z = noise_run(tl.load(seed), stream, tl.load(first), BLOCK, VECTOR, DISTRIBUTION)
    tl.store(out + tl.arange(0, BLOCK), z)


@triton.jit(do_not_specialize=["stream"])
def tile_kernel(
    out,
    seed,
    stream,
    first,
    chunk,
    ROWS: tl.constexpr,
    RANK: tl.constexpr,
    DISTRIBUTION: tl.constexpr,
):
    row, column = tl.arange(0, ROWS), chunk * width_of(RANK) + tl.arange(0, width_of(RANK))
    z = noise_of_b(tl.load(seed), stream, tl.load(first) + row, chunk, RANK, DISTRIBUTION)
    tl.store(out + row[:, None] * RANK + column[None, :], z, mask=column[None, :] < RANK)


def by_seed_and_stream(answers: list[list[str]]) -> dict[tuple[int, int], list[list[str]]]:
    grouped: dict[tuple[int, int], list[list[str]]] = {}
    for seed, stream, *rest in answers:
        grouped.setdefault((signed(seed), signed(stream)), []).append(rest)
    return grouped


def padded_to(count: int, values: list[int], device: str) -> torch.Tensor:
    return torch.tensor(values + [0] * (count - len(values)), device=device)


def bits_of(values: torch.Tensor) -> list[str]:
    return [f"{int(word):08x}" for word in values.cpu().numpy().view("uint32")]


def test_known_words(device: str) -> None:
    for (seed, stream), rows in by_seed_and_stream(KNOWN_ANSWERS["words"]).items():
        out = torch.zeros(16, 4, dtype=torch.int32, device=device)
        counters = padded_to(16, [int(counter) for counter, *_ in rows], device)
        words_kernel[(1,)](out, torch.tensor([seed], device=device), stream, counters, 16)
        assert [bits_of(words) for words in out[: len(rows)]] == [words for _, *words in rows]


@pytest.mark.parametrize("distribution", FLAT_DISTRIBUTIONS)
def test_known_answers(distribution: str, device: str) -> None:
    for (seed, stream), rows in by_seed_and_stream(KNOWN_ANSWERS[distribution]).items():
        elements, answers = [int(element) for element, _ in rows], [bits for _, bits in rows]
        on_device = torch.tensor([seed], device=device)
        out = poisoned(16).to(device)
        elements_kernel[(1,)](out, on_device, stream, padded_to(16, elements, device), 16, distribution)
        assert bits_of(out)[: len(rows)] == answers
        quads = poisoned(16, 4).to(device)
        counters = padded_to(16, [element // 4 for element in elements], device)
        quads_kernel[(1,)](quads, on_device, stream, counters, 16, distribution)
        assert [bits_of(quads[i])[element % 4] for i, element in enumerate(elements)] == answers


@pytest.mark.parametrize("distribution", FLAT_DISTRIBUTIONS)
@pytest.mark.parametrize("vector", [4, 8])
@pytest.mark.parametrize("first", FIRST_ELEMENTS)
def test_runs_of_any_64_bit_element(first: int, vector: int, distribution: str, device: str) -> None:
    out = poisoned(2048).to(device)
    seed, start = torch.tensor([-3], device=device), torch.tensor([first], device=device)
    run_kernel[(1,)](out, seed, 2**40 + 1, start, 2048, vector, distribution)
    assert_same_bits(out.cpu(), expected_noise(2048, -3, 2**40 + 1, distribution, first))


@pytest.mark.parametrize(
    ("rank", "distribution", "first_row"),
    covering((1, 2, 3, 4, 6, 8, 12, 16, 20, 32, 33, 128), FLAT_DISTRIBUTIONS, (0, 40, 2**33)),
)
def test_tiles_of_any_rank(rank: int, first_row: int, distribution: str, device: str) -> None:
    rows = torch.tensor([first_row], dtype=torch.int64 if first_row > 2**20 else torch.int32, device=device)
    out = poisoned(32, rank).to(device)
    for chunk in range(chunks_of(rank)):
        tile_kernel[(1,)](out, torch.tensor([9], device=device), -7, rows, chunk, 32, rank, distribution)
    assert_same_bits(out.cpu(), expected_noise((32, rank), 9, -7, distribution, first_row * rank))


@pytest.mark.parametrize(
    ("size", "distribution", "dtype"), covering(SIZES, DISTRIBUTIONS, DTYPES), ids=name_of
)
def test_sizes(size: int, distribution: str, dtype: torch.dtype, op: Callable, device: str) -> None:
    args = ([size], torch.tensor(3, device=device), 4, distribution)
    expected = expected_noise(size, 3, 4, distribution).to(dtype)
    out, memory = guarded(poisoned(size, dtype=dtype), device)
    assert op("noise.out")(*args, dtype=dtype, out=out) is out
    assert_same_bits(out.cpu(), expected)
    assert_guarded(out, memory)
    assert_same_bits(op("noise")(*args, dtype=dtype).cpu(), expected)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0, 3), (7, 1, 11, 3)], ids=name_of)
def test_shapes_are_row_major(shape: tuple[int, ...], op: Callable, device: str) -> None:
    z = op("noise")(list(shape), torch.tensor(5, device=device), 6)
    assert z.is_contiguous()
    assert_same_bits(z.cpu(), expected_noise(math.prod(shape), 5, 6, "gaussian").reshape(shape))


def test_strided_out(op: Callable, device: str) -> None:
    out = poisoned(11, 15).to(device)[1::2, 1::2]
    op("noise.out")([5, 7], torch.tensor(5, device=device), 6, out=out)
    assert_same_bits(out.contiguous().cpu(), expected_noise((5, 7), 5, 6, "gaussian"))
    assert gaps_untouched(out)


@pytest.mark.parametrize(("seed", "stream", "distribution"), covering(SEEDS, SEEDS, DISTRIBUTIONS))
def test_any_64_bits(seed: int, stream: int, distribution: str, op: Callable, device: str) -> None:
    z = op("noise")([133], torch.tensor([seed], device=device), stream, distribution)
    assert_same_bits(z.cpu(), expected_noise(133, seed, stream, distribution))


@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=name_of)
def test_fake(dtype: torch.dtype | None, assert_fake_agrees: Callable, device: str) -> None:
    seed = torch.tensor([5], device=device)
    assert_fake_agrees("noise", [3, 5], seed, 6, dtype=dtype)
    out = torch.empty(3, 5, dtype=dtype or torch.float32, device=device)
    assert_fake_agrees("noise.out", [3, 5], seed, 6, dtype=dtype, out=out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": torch.tensor(1, dtype=torch.int32)}, "seed .*int64"),
        ({"seed": torch.tensor([1, 2])}, "seed"),
        ({"size": [2, -1]}, "size must not be negative, got -1"),
        ({"dtype": torch.float64}, "dtype .*float64"),
        ({"distribution": "Gaussian"}, "distribution .*'Gaussian'"),
        ({"out": torch.ones(4)}, "out .*shape"),
        ({"out": torch.ones(3, dtype=torch.float16)}, "out .*float32, got float16"),
        ({"out": torch.ones(1).expand(3)}, "out .*overlap"),
    ],
    ids=str,
)
def test_refuses_and_writes_nothing(
    arguments: dict[str, Any], message: str, op: Callable, device: str
) -> None:
    call = moved({"size": [3], "seed": torch.tensor(1), "distribution": "gaussian", **arguments}, device)
    size, seed, distribution = call.pop("size"), call.pop("seed"), call.pop("distribution")
    with pytest.raises(RuntimeError, match=f"mobizo::noise: .*{message}"):
        op("noise.out" if "out" in call else "noise")(size, seed, 2, distribution, **call)
    assert "out" not in call or bool((call["out"] == 1).all())
