"""The ops inside ExecuTorch: torch's bits, whatever the output held before, for any number of threads."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from executorch.runtime import Program
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    SEEDS,
    assert_close_to_mp_lora,
    assert_same_bits,
    directions,
    name_of,
)
from hypothesis import given, settings
from op_programs import MethodSpec, call, load, lower
from op_properties import WORDS
from op_properties import directions as any_directions
from programs import tiny_program
from torch.export import Dim

from mobizo_kernels import ops, reference
from mobizo_kernels.executorch._library import load_trainer

STREAM = -1234567890123456789
SCALING = 1.75
NOISE = [
    (torch.float32, "gaussian"),
    (torch.float32, "rademacher"),
    (torch.bfloat16, "gaussian"),
    (torch.float16, "rademacher"),
    (torch.float32, "outer"),
]
# name: shape, dtype, decay, distribution
PARAMETERS = {
    "matrix": ((2, 2051), torch.float32, 1.0, "gaussian"),
    "signs": ((5, 1, 13), torch.float32, 0.5, "rademacher"),
    "brain": ((7, 19), torch.bfloat16, 0.875, "rademacher"),
    "product": ((9, 3, 50), torch.float16, 0.875, "outer"),
    "vector": ((129,), torch.float16, 1.0, "gaussian"),
}
# storage of base and x, of B, and the distribution; A is float32
MIXES = [
    (base, b, DISTRIBUTIONS[(i + k) % 3]) for i, base in enumerate(DTYPES) for k, b in enumerate(DTYPES)
] + [(torch.float32, torch.float32, distribution) for distribution in DISTRIBUTIONS[1:]]
# rows, in, out, rank, groups
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 1, 2),
    (12, 7, 17, 3, 4),
    (34, 40, 63, 31, 2),
    (64, 129, 95, 16, 8),
    (9, 33, 130, 64, 9),
    (200, 96, 193, 8, 2),
    (6, 20, 70, 256, 3),
    (512, 16, 24, 4, 256),
]
RANKS = [*range(1, 18), 31, 32, 33, 47, 63, 64, 65, 127, 128, 129, 255, 256]


def mp_lora_arguments(
    sizes: tuple[int, int, int, int, int],
    rng: torch.Generator,
    base_dtype: torch.dtype = torch.float32,
    b_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, ...]:
    rows, in_features, out_features, rank, groups = sizes
    return (
        torch.randn(rows, out_features, generator=rng).to(base_dtype),
        torch.randn(rows, in_features, generator=rng).to(base_dtype),
        torch.randn(rank, in_features, generator=rng) / in_features**0.5,
        torch.randn(out_features, rank, generator=rng).to(b_dtype),
        *directions(groups, rng),
    )


def method_name(op: str, *what: Any) -> str:
    return "_".join([op, *map(name_of, what)])


def noise_spec(dtype: torch.dtype, distribution: str) -> MethodSpec:
    """The noise of a matrix as large as its first argument."""
    return MethodSpec(
        lambda _, like, seed: ops.noise(like.shape, seed, STREAM, distribution, dtype=dtype),
        (torch.zeros(5, 7), torch.tensor(1)),
        ({0: Dim("rows", min=2, max=70), 1: Dim("columns", min=2, max=2100)}, None),
    )


def mp_lora_spec(base_dtype: torch.dtype, b_dtype: torch.dtype, distribution: str) -> MethodSpec:
    """Every size is dynamic, so that one method serves all problems of its types."""
    sizes = {"rows": 512, "inputs": 160, "outputs": 320, "rank": 256, "groups": 256}
    rows, inputs, outputs, rank, groups = (Dim(name, min=2, max=most) for name, most in sizes.items())
    example = mp_lora_arguments((34, 40, 63, 31, 4), torch.Generator(), base_dtype, b_dtype)
    return MethodSpec(
        lambda _, *tensors: ops.mp_lora(*tensors, SCALING, STREAM, distribution),
        example,
        ({0: rows, 1: outputs}, {0: rows, 1: inputs}, {0: rank, 1: inputs}, {0: outputs, 1: rank},
         {0: groups}, {0: groups}),
    )  # fmt: skip


def parameter(name: str) -> torch.Tensor:
    shape, dtype, _, _ = PARAMETERS[name]
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(name))).to(dtype)


def update_spec(name: str) -> MethodSpec:
    _, _, decay, distribution = PARAMETERS[name]
    count = {0: Dim("count", min=2, max=300)}
    return MethodSpec(
        lambda shared, seeds, coeffs: ops.zo_update(
            shared.get_buffer(name), seeds, coeffs, STREAM, decay, distribution
        ),
        directions(5, torch.Generator()),
        (count, count),
    )


def read_spec(name: str) -> MethodSpec:
    return MethodSpec(lambda shared: shared.get_buffer(name).clone())


@pytest.fixture(scope="module")
def binary() -> bytes:
    methods = {method_name("noise", *case): noise_spec(*case) for case in NOISE}
    methods |= {method_name("mp_lora", *case): mp_lora_spec(*case) for case in MIXES}
    methods |= {method_name("update", name): update_spec(name) for name in PARAMETERS}
    methods |= {method_name("read", name): read_spec(name) for name in PARAMETERS}
    return lower(methods, {name: parameter(name) for name in PARAMETERS})


@pytest.fixture
def program(binary: bytes) -> Program:
    """Loaded anew: its parameters are what they were at first."""
    return load(binary)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 43), (2, 1025), (67, 2051)], ids=name_of)
@pytest.mark.parametrize("case", NOISE, ids=name_of)
def test_noise(case: tuple[torch.dtype, str], shape: tuple[int, int], program: Program) -> None:
    dtype, distribution = case
    method = program.load_method(method_name("noise", *case))
    for seed in SEEDS:
        z = call(method, [torch.zeros(shape), torch.tensor(seed)])
        assert_same_bits(z, ops.noise(shape, torch.tensor(seed), STREAM, distribution, dtype=dtype))


@pytest.mark.parametrize("name", PARAMETERS)
def test_update(name: str, program: Program, rng: torch.Generator) -> None:
    """Many updates in a row, of few and many seeds: the same values and norms as in torch."""
    _, _, decay, distribution = PARAMETERS[name]
    update, read = program.load_method(f"update_{name}"), program.load_method(f"read_{name}")
    expected = parameter(name)
    assert_same_bits(call(read, []), expected)
    for count in (1, 5, 300, 0):
        seeds, coeffs = directions(count, rng)
        norm = call(update, [seeds, coeffs])
        assert_same_bits(norm, ops.zo_update(expected, seeds, coeffs, STREAM, decay, distribution))
        assert_same_bits(call(read, []), expected)


def test_update_is_the_reference(program: Program, rng: torch.Generator) -> None:
    seeds, coeffs = directions(9, rng)
    shape, _, decay, distribution = PARAMETERS["signs"]
    expected, _ = reference.zo_update(parameter("signs"), seeds, coeffs, STREAM, decay, distribution)
    call(program.load_method("update_signs"), [seeds, coeffs])
    assert_same_bits(call(program.load_method("read_signs"), []), expected)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("name", PARAMETERS)
@settings(max_examples=6)
@given(directions=any_directions(), seed=WORDS)
def test_any_numbers(
    name: str, directions: tuple[torch.Tensor, torch.Tensor], seed: int, binary: bytes
) -> None:
    """Zeros, infinities, NaN and denormals for coefficients; seeds at the ends of their range."""
    program, (_, _, decay, distribution) = load(binary), PARAMETERS[name]
    expected, _ = reference.zo_update(parameter(name), *directions, STREAM, decay, distribution)
    call(program.load_method(f"update_{name}"), directions)
    assert_same_bits(call(program.load_method(f"read_{name}"), []), expected)
    z = call(program.load_method("noise_float32_outer"), [torch.zeros(3, 5), torch.tensor(seed)])
    assert_same_bits(z, torch.from_numpy(reference.noise((3, 5), seed, STREAM, "outer")))


@pytest.mark.parametrize("case", MIXES, ids=name_of)
@pytest.mark.parametrize("sizes", SIZES, ids=name_of)
def test_mp_lora(
    sizes: tuple[int, int, int, int, int],
    case: tuple[torch.dtype, torch.dtype, str],
    program: Program,
    rng: torch.Generator,
) -> None:
    base, b, distribution = case
    arguments = mp_lora_arguments(sizes, rng, base, b)
    got = call(program.load_method(method_name("mp_lora", *case)), arguments)
    assert_close_to_mp_lora(got, *arguments, SCALING, STREAM, distribution)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mp_lora_of_every_rank(distribution: str, program: Program, rng: torch.Generator) -> None:
    method = program.load_method(method_name("mp_lora", torch.float32, torch.float32, distribution))
    for rank in RANKS:
        arguments = mp_lora_arguments((10, 37, 67, rank, 2), rng)
        assert_close_to_mp_lora(call(method, arguments), *arguments, SCALING, STREAM, distribution)


def test_number_of_threads(
    binary: bytes, tmp_path_factory: pytest.TempPathFactory, rng: torch.Generator
) -> None:
    """One pool serves the whole process; a trainer sets its size."""
    gc.collect()  # trainers of other tests, which hold the pool while errors refer to them
    seeds, coeffs = directions(7, rng)
    large = mp_lora_arguments((512, 160, 320, 24, 8), rng)
    results = []
    for threads in (1, 2, 5):
        trainer = load_trainer().Trainer(tiny_program(tmp_path_factory), threads)
        program = load(binary)
        norm = call(program.load_method("update_matrix"), [seeds, coeffs])
        results.append(
            [
                norm,
                call(program.load_method("read_matrix"), []),
                call(program.load_method("noise_float32_gaussian"), [torch.zeros(67, 2051), seeds[0]]),
                call(program.load_method("mp_lora_float32_float32_gaussian"), large),
            ]
        )
        del trainer
    for other in results[1:]:
        for one, many in zip(results[0], other, strict=True):
            assert_same_bits(many, one)
