"""The optimizers inside ExecuTorch: the bits of torch in parameter and state, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from executorch.exir.schema import ScalarType
from helpers import assert_same_bits, directions
from op_programs import MethodSpec, assert_refused, call, damaged, load, lower
from programs import tiny_program
from torch.export import Dim

from mobizo_kernels import ops
from mobizo_kernels.executorch._library import load_trainer

STREAM = -1234567890123456789
# name: shape, dtype, decay, distribution
PARAMETERS = {
    "matrix": ((2, 2051), torch.float32, 1.0, "gaussian"),
    "brain": ((7, 19), torch.bfloat16, 0.875, "rademacher"),
    "vector": ((129,), torch.float16, 0.5, "gaussian"),
}
STATE = {"momentum": ("first",), "adam": ("first", "second"), "sign": ()}

Tensors = dict[str, torch.Tensor]


def buffers() -> Tensors:
    """Every parameter's values and two state tensors."""
    rng = torch.Generator().manual_seed(3)
    made = {}
    for name, (shape, dtype, _, _) in PARAMETERS.items():
        made[f"{name}_param"] = torch.randn(shape, generator=rng).to(dtype)
        made[f"{name}_first"] = torch.randn(shape, generator=rng)
        made[f"{name}_second"] = torch.rand(shape, generator=rng)
    return made


def step(op: str, name: str, at: Callable[[str], torch.Tensor], *given: torch.Tensor) -> torch.Tensor:
    """One step of `op` on the buffers of a parameter; `given` are seeds, coeffs and learning rate."""
    _, _, decay, distribution = PARAMETERS[name]
    seeds, coeffs, lr = given
    tensors = [at(f"{name}_{part}") for part in ("param", *STATE[op])]
    if op == "momentum":
        return ops.zo_momentum(*tensors, seeds, coeffs, STREAM, 0.9, decay, distribution)
    if op == "adam":
        numbers = (0.9, 0.999, 1e-8)
        return ops.zo_adam(*tensors, seeds, coeffs, lr, STREAM, *numbers, decay, distribution)
    return ops.zo_sign(*tensors, seeds, coeffs, lr, STREAM, decay, distribution)


def step_spec(op: str, name: str) -> MethodSpec:
    count = {0: Dim("count", min=2, max=300)}
    return MethodSpec(
        lambda shared, *given: step(op, name, shared.get_buffer, *given),
        (*directions(5, torch.Generator()), torch.ones(1)),
        (count, count, None),
    )


@pytest.fixture(scope="module")
def binary() -> bytes:
    methods = {f"{op}_{name}": step_spec(op, name) for op in STATE for name in PARAMETERS}
    methods |= {f"read_{name}": read_spec(name) for name in buffers()}
    return lower(methods, buffers())


def read_spec(name: str) -> MethodSpec:
    return MethodSpec(lambda shared: shared.get_buffer(name).clone())


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("op", STATE)
def test_steps(op: str, name: str, binary: bytes, rng: torch.Generator) -> None:
    """Many steps in a row, of few and many seeds: the same values, state and norms as in torch."""
    program, expected = load(binary), buffers()
    for count in (1, 5, 300, 0):
        given = (*directions(count, rng), torch.tensor([0.1 / (1 + count)]))
        norm = call(program.load_method(f"{op}_{name}"), given)
        assert_same_bits(norm, step(op, name, expected.__getitem__, *given))
        for part, value in expected.items():
            assert_same_bits(call(program.load_method(f"read_{part}"), []), value)


def test_number_of_threads(
    binary: bytes, tmp_path_factory: pytest.TempPathFactory, rng: torch.Generator
) -> None:
    """One pool serves the whole process; a trainer sets its size."""
    given = (*directions(7, rng), torch.tensor([0.1]))
    results = []
    for threads in (1, 2, 5):
        trainer = load_trainer().Trainer(tiny_program(tmp_path_factory), threads)
        program = load(binary)
        norms = [call(program.load_method(f"{op}_matrix"), given) for op in STATE]
        results.append(norms + [call(program.load_method(f"read_{part}"), []) for part in buffers()])
        del trainer
    for other in results[1:]:
        for one, many in zip(results[0], other, strict=True):
            assert_same_bits(many, one)


PARAM, FIRST, SECOND = torch.linspace(-1, 1, 12).view(4, 3), torch.ones(4, 3), torch.full((4, 3), 2.0)
DIRECTIONS = (torch.arange(6), torch.ones(6))
WITH_LR = (*DIRECTIONS, torch.ones(1))


@pytest.fixture(scope="module")
def refusing() -> bytes:
    """The three ops with nothing else in their methods, over buffers of 4 x 3."""
    return lower(
        {
            "momentum": MethodSpec(
                lambda shared, *given: ops.zo_momentum(shared.param, shared.first, *given, 1, 0.9), DIRECTIONS
            ),
            "adam": MethodSpec(
                lambda shared, *given: ops.zo_adam(
                    shared.param, shared.first, shared.second, *given, 1, 0.9, 0.99, 1e-8
                ),
                WITH_LR,
            ),
            "sign": MethodSpec(lambda shared, *given: ops.zo_sign(shared.param, *given, 1), WITH_LR),
            "read_param": MethodSpec(lambda shared: shared.param.clone()),
            "read_first": MethodSpec(lambda shared: shared.first.clone()),
            "read_second": MethodSpec(lambda shared: shared.second.clone()),
        },
        {"param": PARAM, "first": FIRST, "second": SECOND},
    )


INT, HALF = ScalarType.INT, ScalarType.HALF

# The kernel's arguments are numbered as in the schema; the last one is the output.
CASES: list[tuple[str, dict[int, dict[str, Any]], str]] = [
    ("momentum", {0: {"scalar_type": INT}}, "param must be float32, bfloat16 or float16, got Int"),
    ("momentum", {0: {"dim_order": [1, 0]}}, "param must be contiguous"),
    ("momentum", {1: {"scalar_type": HALF}}, "momentum must be float32, got Half"),
    ("momentum", {1: {"sizes": [3, 4]}}, "momentum must have the shape of param"),
    ("momentum", {1: {"sizes": [12]}}, "momentum must have the shape of param"),
    ("momentum", {1: {"dim_order": [1, 0]}}, "momentum must be contiguous"),
    ("momentum", {2: {"scalar_type": INT}}, "seeds must be int64 of one dimension, got Int of 1"),
    ("momentum", {3: {"sizes": [5]}}, "coeffs must have the length of seeds, 6, got 5"),
    ("momentum", {7: {"string_val": "uniform"}}, "distribution must be 'gaussian', 'rademacher' or 'outer'"),
    ("momentum", {8: {"sizes": [2]}}, "out must be float32 of shape (1,)"),
    ("adam", {0: {"scalar_type": INT}}, "param must be float32, bfloat16 or float16, got Int"),
    ("adam", {1: {"scalar_type": HALF}}, "exp_avg must be float32, got Half"),
    ("adam", {2: {"sizes": [4, 2]}}, "exp_avg_sq must have the shape of param"),
    ("adam", {2: {"dim_order": [1, 0]}}, "exp_avg_sq must be contiguous"),
    ("adam", {3: {"sizes": [2, 3]}}, "seeds must be int64 of one dimension, got Long of 2"),
    ("adam", {4: {"scalar_type": HALF}}, "coeffs must be float32 of one dimension, got Half of 1"),
    ("adam", {5: {"scalar_type": HALF}}, "lr must be float32 of shape (1,)"),
    ("adam", {5: {"sizes": []}}, "lr must be float32 of shape (1,)"),
    ("adam", {11: {"string_val": "normal"}}, "distribution must be 'gaussian', 'rademacher' or 'outer'"),
    ("adam", {12: {"scalar_type": HALF}}, "out must be float32 of shape (1,)"),
    ("sign", {0: {"scalar_type": INT}}, "param must be float32, bfloat16 or float16, got Int"),
    ("sign", {2: {"sizes": [5]}}, "coeffs must have the length of seeds, 6, got 5"),
    ("sign", {3: {"sizes": [2]}}, "lr must be float32 of shape (1,)"),
    ("sign", {6: {"string_val": "Gaussian"}}, "distribution must be 'gaussian', 'rademacher' or 'outer'"),
    ("sign", {7: {"sizes": []}}, "out must be float32 of shape (1,)"),
]


def test_the_program_is_sound(refusing: bytes) -> None:
    """Undamaged, every op runs on what the damaged ones are given."""
    program = load(refusing)
    for op in STATE:
        _, inputs = damaged(refusing, op, {})
        assert call(program.load_method(op), inputs).isfinite().all()


@pytest.mark.parametrize(("op", "changes", "message"), CASES)
def test_refuses_and_leaves_everything(
    op: str,
    changes: dict[int, dict[str, Any]],
    message: str,
    refusing: bytes,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program, inputs = damaged(refusing, op, changes)
    loaded = load(program)
    assert_refused(loaded.load_method(op), inputs, f"mobizo::zo_{op}: {message}", capfd)
    for name, before in (("param", PARAM), ("first", FIRST), ("second", SECOND)):
        assert torch.equal(call(loaded.load_method(f"read_{name}"), []), before)
