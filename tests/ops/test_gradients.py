"""Gradients of mp_lora and mp_lora_linear against autograd through the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import DISTRIBUTIONS, UNIT_ROUNDOFF, directions, name_of
from peft import LoraConfig
from tiny import VOCABULARY, llama

from mobizo_kernels import ops, reference
from mobizo_kernels.lora import wrap

SCALING, STREAM = 0.7, -11
Tensors = dict[str, torch.Tensor]
ADAPTER = ("x", "lora_a", "lora_b", "coeffs")


def require_gradients(given: Tensors, dtype: torch.dtype | None = None) -> Tensors:
    """Leaves of the same values, of another dtype if one is given; seeds stay as they are."""
    values = {name: value.detach() for name, value in given.items() if name != "seeds"}
    leaves = {name: value.to(dtype or value.dtype, copy=True) for name, value in values.items()}
    return {**{name: leaf.requires_grad_() for name, leaf in leaves.items()}, "seeds": given["seeds"]}


def tensors_of(
    dtype: torch.dtype, rng: torch.Generator, leading: tuple[int, ...] = (6, 3), groups: int = 3
) -> Tensors:
    """Arguments of sizes that are no multiples of anything; the first two groups share a direction."""
    shapes = {"base": (*leading, 5), "x": (*leading, 7), "weight": (5, 7), "bias": (5,)}
    given = {name: torch.randn(shape, generator=rng).to(dtype) for name, shape in shapes.items()}
    given |= {"lora_a": torch.randn(3, 7, generator=rng), "lora_b": torch.randn(5, 3, generator=rng)}
    seeds, coeffs = directions(groups, rng, scale=0.5)
    seeds[1:2] = seeds[:1]
    return {**given, "seeds": seeds, "coeffs": coeffs}


def adapter_in_float64(given: Tensors, base: torch.Tensor, distribution: str) -> torch.Tensor:
    """base + the adapter, differentiable: the reference takes its coefficients as numbers."""
    b, seeds = given["lora_b"], given["seeds"].tolist()
    z = [torch.from_numpy(reference.noise(tuple(b.shape), seed, STREAM, distribution)) for seed in seeds]
    stack = b + given["coeffs"][:, None, None] * torch.stack(z).double()
    h = given["x"] @ given["lora_a"].t()
    rows = h.reshape(len(seeds), -1, b.shape[1]) @ stack.transpose(1, 2)
    return base + SCALING * rows.reshape(base.shape)


def gradients(result: torch.Tensor, weights: torch.Tensor, wanted: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad((result * weights.to(result.dtype)).sum(), wanted))


def assert_gradients(
    actual: list[torch.Tensor], expected: list[torch.Tensor], given: Tensors, names: list[str]
) -> None:
    """A few roundings of the storage types away at most, measured by the largest element."""
    for name, got, exact in zip(names, actual, expected, strict=True):
        assert got.dtype == given[name].dtype
        assert got.shape == given[name].shape
        tolerance = 16 * max(UNIT_ROUNDOFF[got.dtype], UNIT_ROUNDOFF[torch.float32])
        assert float((got.double() - exact).abs().max()) <= tolerance * float(exact.abs().max()), name


def run(op: str, given: Tensors, distribution: str) -> torch.Tensor:
    tensors = (given["lora_a"], given["lora_b"], given["seeds"], given["coeffs"])
    adapter = (*tensors, SCALING, STREAM, distribution)
    if op == "mp_lora":
        return ops.mp_lora(given["base"], given["x"], *adapter)
    if op == "mp_lora_":
        return ops.mp_lora_(given["base"] * 1, given["x"], *adapter)  # a leaf may not be changed in place
    return ops.mp_lora_linear(given["x"], given["weight"], given["bias"], *adapter)


NAMES = {
    "mp_lora": ["base", *ADAPTER],
    "mp_lora_": ["base", *ADAPTER],
    "mp_lora_linear": ["weight", "bias", *ADAPTER],
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("op", NAMES)
def test_all_gradients(op: str, dtype: torch.dtype, distribution: str, rng: torch.Generator) -> None:
    given, names = tensors_of(dtype, rng), NAMES[op]
    exact = require_gradients(given, torch.float64)
    base = F.linear(exact["x"], exact["weight"], exact["bias"]) if op == "mp_lora_linear" else exact["base"]
    weights = torch.randn(base.shape, generator=rng).to(dtype)
    expected = gradients(adapter_in_float64(exact, base, distribution), weights, [exact[n] for n in names])
    leaves = require_gradients(given)
    actual = gradients(run(op, leaves, distribution), weights, [leaves[n] for n in names])
    assert_gradients(actual, expected, given, names)


@pytest.mark.parametrize(("op", "name"), [(op, name) for op, names in NAMES.items() for name in names])
def test_each_gradient_alone(op: str, name: str, rng: torch.Generator) -> None:
    """What is not asked for is not made, and what is asked for is the same."""
    given = tensors_of(torch.float32, rng)
    weights = torch.randn(6, 3, 5, generator=rng)
    alone = {**given, name: given[name].clone().requires_grad_()}
    (actual,) = gradients(run(op, alone, "gaussian"), weights, [alone[name]])
    together = require_gradients(given)
    (expected,) = gradients(run(op, together, "gaussian"), weights, [together[name]])
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(("leading", "groups"), [((0, 4), 2), ((4,), 4), ((1, 1, 2), 1)])
def test_odd_shapes(leading: tuple[int, ...], groups: int, rng: torch.Generator) -> None:
    given = tensors_of(torch.float32, rng, leading, groups)
    exact = require_gradients(given, torch.float64)
    leaves = require_gradients(given)
    weights = torch.randn((*leading, 5), generator=rng)
    names = NAMES["mp_lora"]
    expected_result = adapter_in_float64(exact, exact["base"], "gaussian") if leading[0] else None
    actual = gradients(run("mp_lora", leaves, "gaussian"), weights, [leaves[n] for n in names])
    if expected_result is None:
        assert not any(bool(grad.any()) for grad in actual)
    else:
        expected = gradients(expected_result, weights, [exact[n] for n in names])
        assert_gradients(actual, expected, given, names)


@pytest.mark.parametrize("op", NAMES)
def test_compiled_gradients(op: str, rng: torch.Generator) -> None:
    given = tensors_of(torch.float32, rng)
    leaves = require_gradients(given)
    weights, wanted = torch.randn(6, 3, 5, generator=rng), [leaves[n] for n in NAMES[op]]
    expected = gradients(run(op, leaves, "gaussian"), weights, wanted)
    compiled: Any = torch.compile(run, backend="aot_eager", fullgraph=True)
    actual = gradients(compiled(op, leaves, "gaussian"), weights, wanted)
    for got, same in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, same, rtol=1e-5, atol=1e-6)


@pytest.mark.compiler
@pytest.mark.parametrize("op", ["mp_lora", "mp_lora_linear"])
def test_opcheck_with_gradients(op: str, rng: torch.Generator) -> None:
    given = require_gradients(tensors_of(torch.float32, rng))
    first = ["base", "x"] if op == "mp_lora" else ["x", "weight", "bias"]
    names = [*first, "lora_a", "lora_b", "seeds", "coeffs"]
    torch.library.opcheck(
        getattr(torch.ops.mobizo, op).default, (*(given[n] for n in names), SCALING, STREAM)
    )


def test_second_derivative(rng: torch.Generator) -> None:
    """d2/dB dx of a sum over rows is scaling * A, once for each row."""
    given = tensors_of(torch.float32, rng)
    x, b = given["x"].requires_grad_(), given["lora_b"].requires_grad_()
    result = run("mp_lora", {**given, "x": x, "lora_b": b}, "gaussian")
    (of_x,) = torch.autograd.grad(result.sum(), x, create_graph=True)
    (of_b,) = torch.autograd.grad(of_x.sum(), b)
    expected = SCALING * 18 * given["lora_a"].sum(1).expand(5, 3)
    torch.testing.assert_close(of_b, expected, rtol=1e-5, atol=1e-5)


def test_what_backward_needs_may_not_change_before_it(rng: torch.Generator) -> None:
    """A zeroth-order step between forward and backward is noticed."""
    given = tensors_of(torch.float32, rng)
    b = given["lora_b"].requires_grad_()
    loss = run("mp_lora", {**given, "lora_b": b, "x": given["x"].requires_grad_()}, "gaussian").sum()
    with torch.no_grad():
        ops.perturb_(b, given["seeds"], given["coeffs"], STREAM)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_first_order_on_a_wrapped_model(rng: torch.Generator) -> None:
    """The gradient of B is the slope that finite differences of the loss find along a direction."""
    model = wrap(llama(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=rng)
    matrices = {name: p for name, p in model.named_parameters() if name.endswith("lora_b")}
    for matrix in matrices.values():
        matrix.requires_grad_()

    def loss() -> torch.Tensor:
        return model(input_ids=ids, labels=ids).loss

    loss().backward()
    direction = {name: torch.randn(p.shape, generator=rng) for name, p in matrices.items()}
    slope = sum(float((p.grad * direction[name]).sum()) for name, p in matrices.items() if p.grad is not None)
    eps, values = 1e-2, []
    with torch.no_grad():
        for sign in (1, -2):
            for name, p in matrices.items():
                p.add_(sign * eps * direction[name])
            values.append(loss().item())
    assert slope == pytest.approx((values[0] - values[1]) / (2 * eps), rel=2e-2)
