"""What mp_lora and its forms refuse, before anything is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import name_of, on_device

from mobizo_kernels import ops

BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"x": torch.ones(12, 3, dtype=torch.float64)}, "x .*float64"),
    ({"lora_a": torch.ones(2, 3, dtype=torch.int32)}, "lora_a .*int32"),
    ({"lora_a": torch.ones(2, 4)}, r"lora_a .*\(rank, 3\), got \(2, 4\)"),
    ({"lora_a": torch.ones(2, 3, 1)}, "lora_a"),
    ({"lora_a": torch.ones(())}, r"lora_a .*\(rank, 3\), got \(\)"),
    ({"lora_a": torch.ones(0, 3), "lora_b": torch.ones(5, 0)}, "rank .*256, got 0"),
    ({"lora_a": torch.ones(257, 3), "lora_b": torch.ones(5, 257)}, "rank .*256, got 257"),
    ({"lora_b": torch.ones(5, 2, dtype=torch.float64)}, "lora_b .*float64"),
    ({"lora_b": torch.ones(6, 2)}, r"lora_b .*\(5, 2\), got \(6, 2\)"),
    ({"lora_b": torch.ones(5, 3)}, r"lora_b .*\(5, 2\), got \(5, 3\)"),
    ({"lora_b": torch.ones(10)}, "lora_b"),
    ({"seeds": torch.ones(4)}, "seeds .*int64"),
    ({"seeds": torch.ones(2, 2, dtype=torch.int64)}, "seeds"),
    ({"coeffs": torch.ones(4, dtype=torch.bfloat16)}, "coeffs .*float32, got bfloat16"),
    ({"coeffs": torch.ones(3)}, "coeffs"),
    (
        {"seeds": torch.ones(5, dtype=torch.int64), "coeffs": torch.ones(5)},
        r"rows of x \(12\) must be divisible by the number of groups \(5\)",
    ),
    ({"seeds": torch.ones(0, dtype=torch.int64), "coeffs": torch.ones(0)}, "seeds"),
    ({"distribution": "gausian"}, "distribution .*'gausian'"),
]
BAD_BASES: list[tuple[dict[str, Any], str]] = [
    ({"base": torch.ones(12, 5, dtype=torch.bfloat16)}, "base .*float32.*bfloat16"),
    ({"base": torch.ones(11, 5)}, r"base .*\(11, 5\)"),
    ({"base": torch.ones(3, 4, 5)}, "base"),
]
BAD_OUTS: list[tuple[dict[str, Any], str]] = [
    ({"out": torch.ones(12, 5, dtype=torch.float16)}, "out .*float32.*float16"),
    ({"out": torch.ones(12, 6)}, "out"),
    ({"out": torch.ones(6, 5)}, "out"),
]
BAD_LINEARS: list[tuple[dict[str, Any], str]] = [
    ({"weight": torch.ones(5, 3, dtype=torch.bfloat16)}, "weight .*float32.*bfloat16"),
    ({"weight": torch.ones(5, 4)}, "weight"),
    ({"bias": torch.ones(4)}, r"bias .*\(4,\)"),
    ({"bias": torch.ones(5, dtype=torch.float16)}, "bias .*float32.*float16"),
]


def good_arguments() -> dict[str, Any]:
    return {
        "base": torch.ones(12, 5),
        "x": torch.ones(12, 3),
        "lora_a": torch.ones(2, 3),
        "lora_b": torch.ones(5, 2),
        "seeds": torch.arange(4),
        "coeffs": torch.ones(4),
        "scaling": 1.0,
        "stream": 0,
    }


def assert_refuses(op: Any, name: str, call: dict[str, Any], message: str, device: str) -> None:
    call = on_device(call, device)
    with pytest.raises(RuntimeError, match=f"mobizo::{name}: .*{message}"):
        op(**call)
    if device == "cpu":
        assert all(bool((call[k] == 1).all()) for k in ("base", "out") if k in call)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS + BAD_BASES, ids=name_of)
def test_mp_lora_refuses(arguments: dict[str, Any], message: str, device: str) -> None:
    call = {**good_arguments(), **arguments}
    assert_refuses(ops.mp_lora, "mp_lora", call, message, device)
    assert_refuses(ops.mp_lora_, "mp_lora_", call, message, device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS + BAD_BASES + BAD_OUTS, ids=name_of)
def test_mp_lora_out_refuses(arguments: dict[str, Any], message: str, device: str) -> None:
    call = {**good_arguments(), "out": torch.ones(12, 5), **arguments}
    assert_refuses(torch.ops.mobizo.mp_lora.out, "mp_lora", call, message, device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS + BAD_LINEARS, ids=name_of)
def test_mp_lora_linear_refuses(arguments: dict[str, Any], message: str, device: str) -> None:
    call = {**good_arguments(), "weight": torch.ones(5, 3), "bias": torch.ones(5), **arguments}
    if call["x"].dtype == torch.float64:
        call["weight"], call["bias"] = call["weight"].double(), call["bias"].double()
    del call["base"]
    assert_refuses(ops.mp_lora_linear, "mp_lora_linear", call, message, device)


@pytest.mark.parametrize("name", ["x", "lora_a", "lora_b", "seeds", "coeffs"])
def test_refuses_mixed_devices(name: str) -> None:
    call = good_arguments()
    call[name] = call[name].to("meta")
    with pytest.raises(RuntimeError, match="mobizo::mp_lora_: .* must be on "):
        ops.mp_lora_(**call)
    assert bool((call["base"] == 1).all())


def test_refuses_an_output_that_overlaps_itself() -> None:
    row = torch.ones(5)
    with pytest.raises(RuntimeError, match="mobizo::mp_lora_: base .*overlap"):
        ops.mp_lora_(**{**good_arguments(), "base": row.expand(12, 5)})
    with pytest.raises(RuntimeError, match="mobizo::mp_lora: out .*overlap"):
        torch.ops.mobizo.mp_lora.out(**good_arguments(), out=row.expand(12, 5))
    assert bool((row == 1).all())
