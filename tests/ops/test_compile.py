"""The ops under opcheck, torch.compile and torch.export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import DISTRIBUTIONS, DTYPES, assert_same_bits, name_of
from torch import nn

from mobizo_kernels import ops

pytestmark = pytest.mark.compiler

HAS_ONEDNN = torch.backends.mkldnn.is_available()
SEEDS, COEFFS = torch.tensor([5, -6, 7]), torch.tensor([0.5, -0.5, 0.0])


def adapter(distribution: str = "gaussian") -> tuple[Any, ...]:
    """lora_a, lora_b and the rest of an adapter of a linear from 10 to 7 features, rank 3, three groups."""
    rng = torch.Generator().manual_seed(2)
    lora_a, lora_b = torch.randn(3, 10, generator=rng), torch.randn(7, 3, generator=rng)
    return lora_a, lora_b, SEEDS, COEFFS, 2.0, 11, distribution


def traced(lora: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same adapter with its stream as a tensor."""
    *rest, stream, distribution = lora
    return *rest, torch.tensor([stream]), distribution


def opcheck_cases() -> list[Any]:
    op = torch.ops.mobizo
    cases = []
    for dtype in DTYPES:
        for distribution in DISTRIBUTIONS:
            x, base = torch.ones(2, 6, 10, dtype=dtype), torch.ones(2, 6, 7, dtype=dtype)
            weight, bias = torch.ones(7, 10, dtype=dtype), torch.ones(7, dtype=dtype)
            update = (base.clone(), SEEDS, COEFFS, 4, 0.9, distribution)
            float32, lr, out = torch.ones(2, 6, 7), torch.tensor([0.1]), {"out": torch.zeros(1)}
            directions, streams, rest = (SEEDS, COEFFS), [4, 5], (0.9, distribution)
            momentum = (base.clone(), float32.clone(), *directions, 4, 0.9, *rest)
            numbers = (0.9, 0.999, 1e-8)
            adam = (base.clone(), float32.clone(), float32.clone(), *directions, lr, 4, *numbers, *rest)
            sign = (base.clone(), *directions, lr, 4, *rest)
            params, state = [base.clone(), bias.clone()], [[float32.clone(), torch.ones(7)] for _ in "mv"]
            lora = adapter(distribution)
            calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
                (op.noise.default, ([3, 5], SEEDS[:1], 4, distribution), {"dtype": dtype}),
                (op.perturb_.default, update, {}),
                (op.foreach_perturb_.default, ([base.clone(), bias], SEEDS, COEFFS, [4, 5], 0.9), {}),
                (op.zo_update.default, update, {}),
                (op.zo_update.out, update, out),
                (op.zo_momentum.default, momentum, {}),
                (op.zo_momentum.out, momentum, out),
                (
                    op.foreach_zo_momentum_.default,
                    (params, state[0], *directions, streams, 0.9, *rest),
                    {},
                ),
                (op.zo_adam.default, adam, {}),
                (op.zo_adam.out, adam, out),
                (
                    op.foreach_zo_adam_.default,
                    (params, *state, *directions, lr, streams, *numbers, *rest),
                    {},
                ),
                (op.zo_sign.default, sign, {}),
                (op.zo_sign.out, sign, out),
                (op.foreach_zo_sign_.default, (params, *directions, lr, streams, *rest), {}),
                (op.mp_lora.default, (base, x, *lora), {}),
                (op.mp_lora.out, (base, x, *lora), {"out": torch.zeros_like(base)}),
                (op.mp_lora_.default, (base.clone(), x, *lora), {}),
                (op.mp_lora_traced_.default, (base.clone(), x, *traced(lora)), {}),
                *(
                    [(op.linear_traced.default, (x, weight, bias), {})]
                    if dtype == torch.float32 and HAS_ONEDNN
                    else []
                ),
                (op.mp_lora_linear.default, (x, weight, bias, *lora), {}),
                (op.mp_lora_linear.default, (x, weight, None, *lora), {}),
                (op.mp_outer_.default, (base.clone(), x, *directions, 4), {}),
            ]
            for overload, args, kwargs in calls:
                name = f"{overload.name().removeprefix('mobizo::')}-{name_of(dtype)}-{distribution}"
                cases.append(pytest.param(overload, args, kwargs, id=name))
    return cases


@pytest.mark.parametrize(("overload", "args", "kwargs"), opcheck_cases())
def test_opcheck(overload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # Functionalization refuses custom ops that return an alias; their faces trace as their functional twins.
    if all(result.alias_info is None for result in overload._schema.returns):
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(overload, args, kwargs, test_utils=checks)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_traced_form_has_the_values_of_mp_lora(distribution: str, rng: torch.Generator) -> None:
    base, x = (torch.randn(2, 6, width, generator=rng) for width in (7, 10))
    lora = adapter(distribution)
    expected = torch.ops.mobizo.mp_lora(base, x, *lora)
    assert torch.ops.mobizo.mp_lora_traced_(base, x, *traced(lora)) is None
    assert torch.equal(base, expected)


@pytest.mark.parametrize("stream", [torch.tensor(11), torch.tensor([11, 12]), torch.tensor([11.0])])
def test_the_traced_form_wants_one_stream(stream: torch.Tensor) -> None:
    *rest, _, distribution = adapter()
    base, x = torch.ones(2, 6, 7, device="meta"), torch.ones(2, 6, 10, device="meta")
    tensors = [one.to("meta") if isinstance(one, torch.Tensor) else one for one in rest]
    with pytest.raises(RuntimeError, match="mp_lora_traced_: stream must"):
        torch.ops.mobizo.mp_lora_traced_(base, x, *tensors, stream, distribution)


class Step(nn.Module):
    """A linear with an adapter, which may be updated before it is used, as in an exported training step."""

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    seeds: torch.Tensor
    coeffs: torch.Tensor
    momentum: torch.Tensor
    squares: torch.Tensor
    lr: torch.Tensor

    def __init__(self, form: str, update: str) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(3)
        self.form, self.update = form, update
        self.weight = nn.Parameter(torch.randn(7, 10, generator=rng), requires_grad=False)
        lora_a, lora_b, *_ = adapter()
        self.register_buffer("lora_a", lora_a)
        self.register_buffer("lora_b", lora_b.clone())
        self.register_buffer("seeds", SEEDS)
        self.register_buffer("coeffs", COEFFS)
        self.register_buffer("momentum", torch.zeros_like(lora_b))
        self.register_buffer("squares", torch.zeros_like(lora_b))
        self.register_buffer("lr", torch.tensor([0.01]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        norm = torch.zeros(1)
        update = (self.seeds, self.coeffs, 11, 0.9)
        if self.update == "zo_update":
            norm = ops.zo_update(self.lora_b, *update)
        elif self.update == "perturb_":
            ops.perturb_(self.lora_b, *update)
        elif self.update == "foreach_perturb_":
            ops.foreach_perturb_([self.lora_b], self.seeds, self.coeffs, [11], 0.9)
        elif self.update == "optimizers":
            lora_b, (seeds, coeffs, stream, _) = self.lora_b, update
            norm = ops.zo_momentum(lora_b, self.momentum, *update)
            norm = norm + ops.zo_adam(
                lora_b, self.momentum, self.squares, seeds, coeffs, self.lr, stream, 0.9, 0.99, 1e-8
            )
            norm = norm + ops.zo_sign(lora_b, seeds, coeffs, self.lr, stream)
            ops.foreach_zo_momentum_([lora_b], [self.momentum], seeds, coeffs, [stream], 0.9)
        rest = (self.lora_a, self.lora_b, self.seeds, self.coeffs, 2.0, 11)
        if self.form == "mp_lora_linear":
            return ops.mp_lora_linear(x, self.weight, None, *rest), norm
        apply = ops.mp_lora if self.form == "mp_lora" else ops.mp_lora_
        return apply(nn.functional.linear(x, self.weight), x, *rest), norm


def assert_traces(step: Step, trace: Callable[[Step], Any], rows: tuple[int, ...]) -> None:
    """The traced module gives what eager gives, and updates its own LoRA-B to the same bits."""
    for count in rows:
        eager, traced = copy.deepcopy(step), trace(copy.deepcopy(step))
        x = torch.randn(count, 2, 10, generator=torch.Generator().manual_seed(count))
        expected, expected_norm = eager(x)
        got, norm = traced(x)
        torch.testing.assert_close(got, expected)
        assert_same_bits(norm, expected_norm)
        (lora_b,) = [buffer for name, buffer in traced.named_buffers() if name.endswith("lora_b")]
        assert_same_bits(lora_b, eager.lora_b)


FORMS = ("mp_lora", "mp_lora_", "mp_lora_linear")
UPDATES = ("none", "zo_update", "perturb_", "foreach_perturb_", "optimizers")


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("form", FORMS)
def test_compile_without_graph_breaks(form: str, update: str) -> None:
    torch.compiler.reset()
    assert_traces(
        Step(form, update), lambda step: torch.compile(step, fullgraph=True, backend="aot_eager"), rows=(3,)
    )


def test_compile_with_inductor() -> None:
    torch.compiler.reset()
    assert_traces(Step("mp_lora_", "zo_update"), lambda step: torch.compile(step, fullgraph=True), rows=(3,))


@pytest.mark.parametrize("form", FORMS)
def test_compile_with_dynamic_shapes(form: str) -> None:
    torch.compiler.reset()
    eager, traced = Step(form, "none"), Step(form, "none")
    compiled = torch.compile(traced, fullgraph=True, dynamic=True, backend="aot_eager")
    for groups, count in ((3, 6), (2, 4), (4, 8)):
        for step in (eager, traced):
            step.seeds, step.coeffs = torch.arange(groups), torch.linspace(-1, 1, groups)
        x = torch.randn(count, 2, 10, generator=torch.Generator().manual_seed(count))
        torch.testing.assert_close(compiled(x)[0], eager(x)[0])


def exported(step: Step, dynamic: bool) -> nn.Module:
    shapes = {"x": {0: torch.export.Dim("rows", min=2, max=99)}} if dynamic else None
    program = torch.export.export(step, (torch.ones(6, 2, 10),), dynamic_shapes=shapes)
    return program.run_decompositions({}).module()


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("form", FORMS)
def test_export(form: str, update: str) -> None:
    assert_traces(Step(form, update), lambda step: exported(step, dynamic=False), rows=(6,))


@pytest.mark.parametrize("form", FORMS)
def test_export_with_a_dynamic_batch(form: str) -> None:
    assert_traces(Step(form, "zo_update"), lambda step: exported(step, dynamic=True), rows=(3, 9, 30))


def test_exported_program_checks_the_number_of_rows() -> None:
    program = exported(Step("mp_lora", "none"), dynamic=True)
    with pytest.raises(RuntimeError, match=r"rows of x \(8\) must be divisible by .* groups \(3\)"):
        program(torch.ones(4, 2, 10))
