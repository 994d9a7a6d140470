"""noise against the known answers and the numpy twin, to the bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    FLAT_DISTRIBUTIONS,
    KNOWN_ANSWERS,
    SEEDS,
    assert_same_bits,
    name_of,
    signed,
)

from mobizo_kernels import ops, reference

# Around whole vectors, counters (4 and 128 elements), words (32) and tasks of the kernels.
SIZES = (0, 1, 2, 3, 4, 5, 15, 17, 31, 33, 63, 65, 127, 128, 129, 255, 257, 2047, 2048, 2049, 2051, 5003)


def expected_noise(size: Any, seed: int, stream: int, distribution: str) -> torch.Tensor:
    return torch.from_numpy(reference.noise(size, seed, stream, distribution))


@pytest.mark.parametrize("distribution", FLAT_DISTRIBUTIONS)
def test_known_answers(distribution: str) -> None:
    answers = [row for row in KNOWN_ANSWERS[distribution] if int(row[2]) < 1 << 20]
    for seed, stream in sorted({(row[0], row[1]) for row in answers}):
        elements = {int(row[2]): row[3] for row in answers if row[:2] == [seed, stream]}
        z = ops.noise([max(elements) + 1], torch.tensor(signed(seed)), signed(stream), distribution)
        bits = z.numpy().view("uint32")
        got = {element: f"{int(bits[element]):08x}" for element in elements}
        assert got == elements


def test_known_answers_of_matrices() -> None:
    for seed, stream, rows, columns, element, bits in KNOWN_ANSWERS["outer"]:
        z = ops.noise([int(rows), int(columns)], torch.tensor(signed(seed)), signed(stream), "outer")
        assert f"{int(z.view(-1).numpy().view('uint32')[int(element)]):08x}" == bits


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", [(), (0, 4), (4, 0), (1, 1), (3, 2050), (1030, 3), (7, 5, 30)], ids=name_of)
def test_outer(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    z = ops.noise(shape, torch.tensor(3), 4, "outer", dtype=dtype)
    assert_same_bits(z, expected_noise(shape, 3, 4, "outer").to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: int, distribution: str, dtype: torch.dtype) -> None:
    z = ops.noise([size], torch.tensor(3), 4, distribution, dtype=dtype)
    assert_same_bits(z, expected_noise(size, 3, 4, distribution).to(dtype))


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0, 3), (7, 1, 11, 3)], ids=name_of)
def test_shapes_are_row_major(shape: tuple[int, ...]) -> None:
    z = ops.noise(shape, torch.tensor(5), 6)
    assert z.is_contiguous()
    assert_same_bits(z, expected_noise(math.prod(shape), 5, 6, "gaussian").reshape(shape))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("stream", SEEDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_any_64_bits(seed: int, stream: int, distribution: str) -> None:
    z = ops.noise([133], torch.tensor([seed]), stream, distribution)
    assert_same_bits(z, expected_noise(133, seed, stream, distribution))


def test_float32_is_the_default() -> None:
    assert ops.noise([2], torch.tensor(0), 0).dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": torch.tensor(1, dtype=torch.int32)}, "seed .*int64"),
        ({"seed": torch.tensor([1, 2])}, "seed"),
        ({"dtype": torch.float64}, "dtype .*float64"),
        ({"dtype": torch.int64}, "dtype"),
        ({"distribution": "Gaussian"}, "distribution .*'Gaussian'"),
        ({"distribution": ""}, "distribution"),
    ],
    ids=str,
)
def test_refuses(arguments: dict[str, Any], message: str, device: str) -> None:
    call = {"size": [3], "seed": torch.tensor(1), "stream": 2, **arguments}
    call["seed"] = call["seed"].to(device)
    with pytest.raises(RuntimeError, match=f"mobizo::noise: .*{message}"):
        ops.noise(**call)


def test_refuses_a_negative_size() -> None:
    with pytest.raises(RuntimeError, match="-1"):
        ops.noise([2, -1], torch.tensor(1), 2)


def test_parameter_stream_is_pinned() -> None:
    # b2sum -l 64 of the name prints 0aa7677b12d62ee3.
    stream = ops.parameter_stream("model.layers.0.self_attn.q_proj.weight")
    assert stream == signed("e32ed6127b67a70a")
    assert stream != ops.parameter_stream("model.layers.1.self_attn.q_proj.weight")


@pytest.mark.parametrize("given", [("cpu", "meta"), ("meta", "cpu")], ids="-".join)
def test_an_output_on_another_device_is_not_left_as_it_was(given: tuple[str, str]) -> None:
    seed, out = torch.tensor([3], device=given[0]), torch.ones(4, device=given[1])
    with pytest.raises(RuntimeError, match="mobizo::noise: out must be on "):
        torch.ops.mobizo.noise([4], seed, 7, out=out)
