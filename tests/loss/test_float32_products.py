"""Float32 linears by oneDNN: the values, which linears, and that a model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from helpers import assert_same_bits, strided
from peft import LoraConfig
from torch import nn

from mobizo_kernels.lora import wrap
from mobizo_kernels.loss import LabelledLoss, float32_products
from mobizo_kernels.loss.float32_products import fast_float32_products
from mobizo_kernels.models import quantize_base

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The weights of the products that oneDNN was given, on any CPU."""
    monkeypatch.setattr(float32_products, "mkl_is_slow", lambda: True)
    given, product = [], float32_products._product

    def note(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        given.append(linear.weight.shape)
        return product(linear, x)

    monkeypatch.setattr(float32_products, "_product", note)
    return given


def untouched(model: nn.Module) -> bool:
    return not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5, 17), (2, 3, 33), (0, 4), (64, 130)], ids=str)
def test_values(shape: tuple[int, ...], bias: bool, products: list[Any], rng: torch.Generator) -> None:
    linear = nn.Linear(shape[-1], 29, bias=bias)
    x = torch.randn(shape, generator=rng)
    expected = nn.functional.linear(
        x.double(), linear.weight.double(), linear.bias.double() if bias else None
    )
    for given in (x, strided(x), x.mT.contiguous().mT):
        with fast_float32_products(linear):
            got = linear(given)
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
        assert got.dtype == torch.float32
    assert len(products) == 3
    assert untouched(linear)


def test_threads_agree(products: list[Any], threads: None, rng: torch.Generator) -> None:
    linear, x = nn.Linear(70, 130), torch.randn(37, 70, generator=rng)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        with fast_float32_products(linear):
            found.append(linear(x))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def replaced() -> nn.Linear:
    linear = nn.Linear(8, 8)
    linear.forward = lambda x: x  # type: ignore[method-assign]
    return linear


def quantised() -> Any:
    model = tiny.llama()
    quantize_base(model, "int8")
    return model.model.layers[0].mlp.up_proj


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(8, 8).bfloat16(), lambda: nn.Linear(8, 8).double(), lambda: Doubled(8, 8), replaced],
)
def test_other_linears_are_left_alone(make: Any, products: list[Any]) -> None:
    linear = make()
    before = dict(vars(linear))
    x = torch.ones(3, 8, dtype=linear.weight.dtype)
    expected = linear(x)
    with fast_float32_products(nn.Sequential(linear)):
        assert_same_bits(linear(x), expected)
    assert vars(linear) == before and products == []


def test_quantised_linears_are_left_alone(products: list[Any]) -> None:
    linear = quantised()
    with fast_float32_products(linear):
        linear(torch.ones(3, linear.weight.shape[1]))
    assert products == []


def test_where_torch_is_to_decide(products: list[Any]) -> None:
    linear, x = nn.Linear(8, 8), torch.ones(3, 8)
    with torch.autocast("cpu", torch.bfloat16), fast_float32_products(linear):
        assert linear(x).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False), fast_float32_products(linear):
        linear(x)
    with torch.enable_grad(), fast_float32_products(linear):
        assert linear(x).requires_grad
    assert products == []


def test_an_error_leaves_the_model_as_it_was(products: list[Any]) -> None:
    linear = nn.Linear(8, 8)
    with pytest.raises(RuntimeError), fast_float32_products(linear):
        linear(torch.ones(3, 9))
    assert untouched(linear) and len(products) == 1


@pytest.mark.parametrize("kind", ["whole", "tail"])
def test_the_loss_of_a_wrapped_model(
    kind: str, products: list[Any], monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """All linears of the decoder, those below an adapter too, in every way that a loss is computed."""
    model = tiny.llama()
    options: dict[str, Any] = {} if kind == "whole" else {"alora_invocation_tokens": [5, 6]}
    wrap(model, LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM", **options))
    batch = tiny.batch(rng, (9, 7), labelled=1)
    batch["input_ids"][:, -4:-2] = torch.tensor([5, 6])
    loss = LabelledLoss(model)
    loss(batch, 2)  # the first one makes sure of the way it takes
    products.clear()
    got = loss(batch, 2)
    linears = sum(type(module) is nn.Linear for module in model.base_model.modules())
    assert linears <= len(products) <= 2 * linears
    assert untouched(model)
    monkeypatch.setattr(float32_products, "mkl_is_slow", lambda: False)
    products.clear()
    torch.testing.assert_close(got, loss(batch, 2), rtol=1e-5, atol=1e-6)
    assert products == []


def test_another_thread_that_took_the_forward_back(products: list[Any]) -> None:
    linear = nn.Linear(8, 8)
    with fast_float32_products(linear):
        del linear.forward
    assert untouched(linear)
