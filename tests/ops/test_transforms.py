"""torch.func, forward-mode differentiation, and gradients of gradients: right, or refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DISTRIBUTIONS
from op_calls import OPS
from torch.autograd import forward_ad

from mobizo_kernels import ops, reference

SEEDS, COEFFS = torch.tensor([5, -6, 7]), torch.tensor([0.5, -0.5, 0.25])


def drawn(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng)


def calls(rng: torch.Generator) -> dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]]:
    """Each differentiable op as a function of x."""
    base, weight = drawn(rng, 6, 7), drawn(rng, 7, 10)
    lora: tuple[Any, ...] = (drawn(rng, 3, 10), drawn(rng, 7, 3), SEEDS, COEFFS, 2.0, 1)
    x = drawn(rng, 6, 10)
    return {
        "mp_lora": (lambda x: ops.mp_lora(base, x, *lora), x),
        "mp_lora_": (lambda x: ops.mp_lora_(base.clone(), x, *lora), x),
        "mp_lora_linear": (lambda x: ops.mp_lora_linear(x, weight, None, *lora), x),
    }


@pytest.mark.parametrize("op", ["mp_lora", "mp_lora_", "mp_lora_linear"])
def test_derivatives_of_torch_func_are_refused(op: str, rng: torch.Generator) -> None:
    call, x = calls(rng)[op]
    for transform in (
        lambda: torch.func.grad(lambda x: call(x).sum())(x),
        lambda: torch.func.vjp(call, x),
        lambda: torch.func.jacrev(call)(x),
        lambda: torch.func.jvp(call, (x,), (x,)),
    ):
        with pytest.raises(RuntimeError, match=rf"mobizo::{op}: torch.func.(grad|jvp) is not supported"):
            transform()
    with forward_ad.dual_level():
        with pytest.raises(RuntimeError, match=rf"mobizo::{op}: forward-mode .* torch.autograd.grad has"):
            call(forward_ad.make_dual(x, x))
        torch.testing.assert_close(call(x), call(x.clone()))  # no tangent, nothing to refuse


@pytest.mark.parametrize("op", [name for name in OPS if not name.endswith("out")])
def test_changes_in_place_are_refused_inside_of_a_derivative(op: str) -> None:
    """torch.func.grad would give zeros: the kernel sees tensors that require no gradient."""
    call = OPS[op].call

    def changed(factor: torch.Tensor) -> torch.Tensor:
        given = OPS[op].given()
        moved = {name: given[name] * factor for name in OPS[op].written}
        call(getattr(ops, op), **{**given, **moved})
        return torch.stack([tensor.sum() for tensor in moved.values()]).sum()

    one, refused = torch.tensor(1.0), rf"mobizo::{op}: torch.func.(grad|jvp) is not supported"
    with pytest.raises(RuntimeError, match=refused):
        torch.func.grad(changed)(one)
    with pytest.raises(RuntimeError, match=refused):
        torch.func.jvp(changed, (one,), (one,))
    assert torch.isfinite(changed(one))


def test_derivatives_of_vmap_are_refused(rng: torch.Generator) -> None:
    call, x = calls(rng)["mp_lora"]
    several = torch.stack([x, x])
    for transform in (
        lambda: torch.func.jvp(torch.func.vmap(call), (several,), (several,)),
        lambda: torch.func.grad(lambda x: torch.func.vmap(call)(x).sum())(several),
    ):
        with pytest.raises(RuntimeError, match=r"mobizo::mp_lora: torch.func.(grad|jvp) is not supported"):
            transform()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("op", ["mp_lora", "mp_lora_linear"])
def test_vmap_and_functionalize(op: str, rng: torch.Generator) -> None:
    call, x = calls(rng)[op]
    several = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.func.vmap(call)(several), torch.stack([call(one) for one in several]))
    torch.testing.assert_close(torch.func.functionalize(call)(x), call(x))


def test_changes_in_place_are_refused_by_torch(rng: torch.Generator) -> None:
    base, x = drawn(rng, 6, 7), drawn(rng, 6, 10)

    def change(base: torch.Tensor) -> None:
        ops.mp_outer_(base, x, SEEDS, COEFFS, 1)

    with pytest.raises(RuntimeError, match="mp_outer_"):
        torch.func.vmap(change)(torch.stack([base, base]))
    with pytest.raises(RuntimeError, match="mp_outer_"):
        torch.func.functionalize(change)(base)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_gradients_of_gradients(distribution: str, rng: torch.Generator) -> None:
    """Against autograd through float64."""
    given = {"x": drawn(rng, 6, 10), "a": drawn(rng, 3, 10), "b": drawn(rng, 7, 3), "coeffs": COEFFS}
    base = drawn(rng, 6, 7)
    z = torch.stack(
        [torch.from_numpy(reference.noise((7, 3), int(seed), 1, distribution)).double() for seed in SEEDS]
    )

    def exact(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, coeffs: torch.Tensor) -> torch.Tensor:
        h = (x @ a.T).unflatten(0, (3, 2))
        return base.double() + 2.0 * (h @ (b + coeffs[:, None, None] * z).mT).flatten(0, 1)

    def ours(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, coeffs: torch.Tensor) -> torch.Tensor:
        return ops.mp_lora(base, x, a, b, SEEDS, coeffs, 2.0, 1, distribution)

    found = []
    for function, dtype in ((ours, torch.float32), (exact, torch.float64)):
        leaves = [value.to(dtype).clone().requires_grad_() for value in given.values()]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        loss = sum(gradient.square().sum() for gradient in first)
        found.append(torch.autograd.grad(loss, leaves))
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 1e-5
