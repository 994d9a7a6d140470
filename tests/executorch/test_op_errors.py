"""What the ops refuse inside ExecuTorch: an error and a line that names the argument, and nothing written.

The exporter would refuse most of it already, so programs are changed after it, as a damaged file is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from executorch.exir.schema import ScalarType
from op_programs import MethodSpec, assert_refused, call, damaged, load, lower

from mobizo_kernels import ops

PARAM = torch.linspace(-1, 1, 12).view(4, 3)
NOISE = (torch.tensor(1),)
UPDATE = (torch.arange(6), torch.ones(6))
MP_LORA = {
    "base": torch.ones(12, 100),
    "x": torch.ones(12, 70),
    "lora_a": torch.ones(8, 70),
    "lora_b": torch.ones(100, 8),
    "seeds": torch.arange(6),
    "coeffs": torch.ones(6),
}


@pytest.fixture(scope="module")
def binary() -> bytes:
    return lower(
        {
            "noise": MethodSpec(lambda _, seed: ops.noise([4, 3], seed, -1), NOISE),
            "update": MethodSpec(lambda shared, *given: ops.zo_update(shared.param, *given, 1), UPDATE),
            "read": MethodSpec(lambda shared: shared.param.clone()),
            "mp_lora": MethodSpec(lambda _, *given: ops.mp_lora(*given, 1.0, 1), tuple(MP_LORA.values())),
        },
        {"param": PARAM},
    )


INT, HALF = ScalarType.INT, ScalarType.HALF

Changes = dict[int, dict[str, Any] | int | None]
Case = tuple[Changes, str]

# The kernel's arguments are numbered as in the schema; the last one is the output.
# Value 6 of the noise program is its stream, -1.
NOISE_CASES: list[Case] = [
    ({0: {"items": [6, 6]}}, "size must not be negative, got -1"),
    ({1: {"scalar_type": INT}}, "seed must be one int64 value, got 1 of Int"),
    ({1: {"scalar_type": INT, "sizes": [2]}}, "seed must be one int64 value, got 2 of Int"),
    (
        {3: {"string_val": "Gaussian"}},
        "distribution must be 'gaussian', 'rademacher' or 'outer', got 'Gaussian'",
    ),
    ({3: {"string_val": ""}}, "distribution"),
    ({5: {"scalar_type": INT}}, "out must be float32, bfloat16 or float16, got Int"),
    ({5: {"scalar_type": HALF}}, "out must have the asked dtype"),
    ({5: {"sizes": [3, 3]}}, "out must have the shape of size"),
    ({5: {"dim_order": [1, 0]}}, "out must be contiguous"),
    ({1: {"memory_of": 5}}, "out and seed must not share memory"),
]
UPDATE_CASES: list[Case] = [
    ({0: {"scalar_type": INT}}, "param must be float32, bfloat16 or float16, got Int"),
    ({0: {"dim_order": [1, 0]}}, "param must be contiguous"),
    ({1: {"scalar_type": INT}}, "seeds must be int64 of one dimension, got Int of 1"),
    ({1: {"sizes": [2, 3]}}, "seeds must be int64 of one dimension, got Long of 2"),
    ({2: {"scalar_type": HALF}}, "coeffs must be float32 of one dimension, got Half of 1"),
    ({2: {"sizes": [2, 3]}}, "coeffs must be float32 of one dimension, got Float of 2"),
    ({2: {"sizes": [5]}}, "coeffs must have the length of seeds, 6, got 5"),
    (
        {5: {"string_val": "uniform"}},
        "distribution must be 'gaussian', 'rademacher' or 'outer', got 'uniform'",
    ),
    ({6: {"sizes": [2]}}, "out must be float32 of shape (1,)"),
    ({6: {"sizes": []}}, "out must be float32 of shape (1,)"),
    ({6: {"scalar_type": HALF}}, "out must be float32 of shape (1,)"),
]
UPDATE_SHARING: list[Case] = [
    ({1: {"memory_of": 0}}, "param and seeds must not share memory"),
    ({2: {"memory_of": 0}}, "param and coeffs must not share memory"),
    ({6: {"memory_of": 0}}, "param and out must not share memory"),
    ({2: {"memory_of": 6}}, "out and coeffs must not share memory"),
]
MP_LORA_CASES: list[Case] = [
    ({0: {"scalar_type": HALF}}, "base must have the dtype of x (Float), got Half"),
    ({0: {"sizes": [11, 100]}}, "base must have the leading sizes of x, got 11 for 12"),
    ({0: {"sizes": [12, 10, 10]}}, "base must have the dimensions of x"),
    ({0: {"dim_order": [1, 0]}}, "base must be contiguous"),
    (
        {0: {"scalar_type": INT}, 1: {"scalar_type": INT}, 9: {"scalar_type": INT}},
        "x must be float32, bfloat16",
    ),
    ({1: {"dim_order": [1, 0]}}, "x must be contiguous"),
    ({0: {"sizes": []}, 1: {"sizes": []}}, "base must have the dimensions of x, one at least"),
    ({2: {"sizes": [8, 69]}}, "lora_a must be float32 of shape (rank, 70), got Float of shape (8, 69)"),
    ({2: {"sizes": [70]}}, "lora_a must be float32 of shape (rank, 70)"),
    ({2: {"scalar_type": HALF}}, "lora_a must be float32 of shape (rank, 70), got Half"),
    ({2: {"dim_order": [1, 0]}}, "lora_a must be contiguous"),
    ({2: {"sizes": [0, 70]}}, "rank must be from 1 to 256, got 0"),
    ({1: {"sizes": [12, 2]}, 2: {"sizes": [257, 2]}}, "rank must be from 1 to 256, got 257"),
    ({3: {"sizes": [99, 8]}}, "lora_b must have shape (100, 8)"),
    ({3: {"sizes": [100, 7]}}, "lora_b must have shape (100, 8)"),
    ({3: {"scalar_type": INT}}, "lora_b must be float32, bfloat16 or float16, got Int"),
    ({3: {"dim_order": [1, 0]}}, "lora_b must be contiguous"),
    ({4: {"scalar_type": INT}}, "seeds must be int64"),
    ({4: {"sizes": [5]}}, "coeffs must have the length of seeds, 5, got 6"),
    ({4: {"sizes": [5]}, 5: {"sizes": [5]}}, "rows of x (12) must be divisible by the number of groups (5)"),
    ({4: {"sizes": [0]}, 5: {"sizes": [0]}}, "seeds must name at least one group"),
    ({5: {"scalar_type": HALF}}, "coeffs must be float32"),
    ({8: {"string_val": "normal"}}, "distribution must be 'gaussian', 'rademacher' or 'outer', got 'normal'"),
    ({9: {"scalar_type": HALF}}, "out must have the dtype of base (Float), got Half"),
    ({9: {"sizes": [12, 99]}}, "out must have the shape of base"),
    ({9: {"dim_order": [1, 0]}}, "out must be contiguous"),
    ({1: {"memory_of": 9}}, "out and x must not share memory"),
    ({2: {"memory_of": 9}}, "out and lora_a must not share memory"),
    ({3: {"memory_of": 9}}, "out and lora_b must not share memory"),
    ({4: {"memory_of": 9}}, "out and seeds must not share memory"),
    ({5: {"memory_of": 9}}, "out and coeffs must not share memory"),
]

# Behind these the runtime would end the process, or the kernel read where nothing is.
NO_MEMORY = {"allocation_info": None, "data_buffer_idx": 0}
CALLS: list[tuple[str, Changes, str]] = [
    ("noise", {0: 1}, "mobizo::noise.out: argument 1 is missing or of another type"),
    ("noise", {1: 2}, "mobizo::noise.out: argument 2 is missing or of another type"),
    ("update", {0: 3}, "mobizo::zo_update.out: argument 1 is missing or of another type"),
    ("update", {4: 3}, "mobizo::zo_update.out: argument 5 is missing or of another type"),
    ("update", {0: NO_MEMORY}, "mobizo::zo_update: param has no memory"),
    ("mp_lora", {2: 6}, "mobizo::mp_lora.out: argument 3 is missing or of another type"),
    ("mp_lora", {6: 7}, "mobizo::mp_lora.out: argument 7 is missing or of another type"),
    ("mp_lora", {8: 0}, "mobizo::mp_lora.out: argument 9 is missing or of another type"),
    ("mp_lora", {9: 8}, "mobizo::mp_lora.out: argument 10 is missing or of another type"),
    ("mp_lora", {5: None}, "mobizo::mp_lora.out: argument 0 is missing or of another type"),
]


def case_id(value: Changes | str) -> str:
    return value if isinstance(value, str) else ""


def test_the_program_is_sound(binary: bytes) -> None:
    """Undamaged, every method runs on what the damaged ones are given."""
    program = load(binary)
    for name in ("noise", "update", "read", "mp_lora"):
        _, inputs = damaged(binary, name, {}) if name != "read" else (b"", [])
        assert call(program.load_method(name), inputs).isfinite().all()


@pytest.mark.parametrize(("changes", "message"), NOISE_CASES, ids=case_id)
def test_noise_refuses(
    changes: Changes, message: str, binary: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    program, inputs = damaged(binary, "noise", changes)
    assert_refused(load(program).load_method("noise"), inputs, f"mobizo::noise: {message}", capfd)


@pytest.mark.parametrize(("changes", "message"), UPDATE_CASES, ids=case_id)
def test_update_refuses_and_leaves_the_parameter(
    changes: Changes, message: str, binary: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    program, inputs = damaged(binary, "update", changes)
    loaded = load(program)
    assert_refused(loaded.load_method("update"), inputs, f"mobizo::zo_update: {message}", capfd)
    assert torch.equal(call(loaded.load_method("read"), []), PARAM)


@pytest.mark.parametrize(("changes", "message"), UPDATE_SHARING, ids=case_id)
def test_update_refuses_shared_memory(
    changes: Changes, message: str, binary: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    program, inputs = damaged(binary, "update", changes)
    assert_refused(load(program).load_method("update"), inputs, f"mobizo::zo_update: {message}", capfd)


def test_mp_lora_writes_its_base(binary: bytes) -> None:
    """Where the planner lets the result have the memory of its base."""
    program, inputs = damaged(binary, "mp_lora", {0: {"memory_of": 9}})
    got = load(program).load_method("mp_lora")
    inner = got._method
    inner.set_inputs(tuple(inputs))
    inner.execute()
    expected = ops.mp_lora(*inputs, 1.0, 1)
    assert torch.allclose(inner.get_outputs(clone_outputs=True)[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("changes", "message"), MP_LORA_CASES, ids=case_id)
def test_mp_lora_refuses(
    changes: Changes, message: str, binary: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    program, inputs = damaged(binary, "mp_lora", changes)
    assert_refused(load(program).load_method("mp_lora"), inputs, f"mobizo::mp_lora: {message}", capfd)


@pytest.mark.parametrize(("method", "changes", "message"), CALLS, ids=case_id)
def test_calls_of_another_form(
    method: str, changes: Changes, message: str, binary: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    program, inputs = damaged(binary, method, changes)
    assert_refused(load(program).load_method(method), inputs, message, capfd)
