"""The ops under torch.autocast: which type comes, and values of the casts made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_bits

from mobizo_kernels import ops

SEEDS, COEFFS = torch.tensor([5, -6, 7]), torch.tensor([0.5, -0.5, 0.25])
TYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def drawn(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng)


def adapter(rng: torch.Generator) -> tuple[Any, ...]:
    return drawn(rng, 3, 40), drawn(rng, 24, 3), SEEDS, COEFFS, 2.0, 1


@TYPES
@pytest.mark.parametrize("bias", [True, False])
def test_the_whole_linear_gives_the_type_of_autocast(
    bias: bool, dtype: torch.dtype, rng: torch.Generator
) -> None:
    x, weight, lora = drawn(rng, 2, 6, 40), drawn(rng, 24, 40), adapter(rng)
    b = drawn(rng, 24) if bias else None
    expected = ops.mp_lora_linear(x.to(dtype), weight.to(dtype), None if b is None else b.to(dtype), *lora)
    for given in (x, x.to(torch.bfloat16)):
        with torch.autocast("cpu", dtype):
            got = ops.mp_lora_linear(given, weight, b, *lora)
        assert got.dtype == F.linear(x.to(dtype), weight.to(dtype)).dtype == dtype
        if given is x:
            assert_same_bits(got, expected)


@TYPES
def test_the_others_follow_their_base(dtype: torch.dtype, rng: torch.Generator) -> None:
    x, weight, lora = drawn(rng, 6, 40), drawn(rng, 24, 40), adapter(rng)
    plain = F.linear(x.to(dtype), weight.to(dtype))
    expected = ops.mp_lora(plain, x.to(dtype), *lora)
    moved = plain.clone()
    ops.mp_outer_(moved, x.to(dtype), SEEDS, COEFFS, 1)
    with torch.autocast("cpu", dtype):
        base = F.linear(x, weight)
        assert_same_bits(base, plain)
        assert_same_bits(ops.mp_lora(base, x, *lora), expected)
        assert_same_bits(torch.ops.mobizo.mp_lora(base, x, *lora, out=torch.empty_like(base)), expected)
        assert_same_bits(ops.mp_lora_(base.clone(), x, *lora), expected)
        ops.mp_outer_(base, x, SEEDS, COEFFS, 1)
        assert_same_bits(base, moved)
        # A base that no linear made stays as it is.
        assert ops.mp_lora(drawn(rng, 6, 24), x, *lora).dtype == torch.float32


def test_updates_know_nothing_of_it(rng: torch.Generator) -> None:
    param = drawn(rng, 7, 3)
    expected = ops.perturb_(param.clone(), SEEDS, COEFFS, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(ops.perturb_(param, SEEDS, COEFFS, 1), expected)
        assert ops.noise([3], SEEDS[:1], 1).dtype == torch.float32


def test_gradients_are_of_the_type_of_the_leaves(rng: torch.Generator) -> None:
    x, weight, lora = drawn(rng, 6, 40).requires_grad_(), drawn(rng, 24, 40), adapter(rng)
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(ops.mp_lora_linear(x, weight, None, *lora).float().sum(), x)
    (exact,) = torch.autograd.grad(ops.mp_lora_linear(x, weight, None, *lora).sum(), x)
    assert got.dtype == torch.float32
    assert float((got - exact).norm() / exact.norm()) < 0.02


def test_other_types_are_refused_as_ever(rng: torch.Generator) -> None:
    x, weight, lora = drawn(rng, 6, 40), drawn(rng, 24, 40), adapter(rng)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="mp_lora_linear: .* float64"):
            ops.mp_lora_linear(x.double(), weight.double(), None, *lora)
        with pytest.raises(RuntimeError, match="mp_lora: base must have the dtype of x"):
            ops.mp_lora(drawn(rng, 6, 24).double(), x, *lora)


def test_the_kernel_refuses_what_the_rule_would_cast(rng: torch.Generator) -> None:
    """As in a program that loads the library without this package: nothing is written past its end."""
    op, cpu = torch.ops.mobizo.mp_lora_linear.default, torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    arguments = (drawn(rng, 6, 40), drawn(rng, 24, 40), None, *adapter(rng))
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(
            RuntimeError, match=r"mp_lora_linear: x must .* \(bfloat16\), got float32; is autocast on"
        ),
    ):
        op.redispatch(cpu, *arguments)


def test_compiled(rng: torch.Generator) -> None:
    x, weight, lora = drawn(rng, 6, 40), drawn(rng, 24, 40), adapter(rng)

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ops.mp_lora_linear(x, weight, None, *lora)

    torch.compiler.reset()
    assert_same_bits(torch.compile(call, fullgraph=True, backend="aot_eager")(x), call(x))
