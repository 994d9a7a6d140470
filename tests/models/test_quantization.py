"""Training over bases of 8 and 4 bits in torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import tiny
import torch
from torch import nn

from mobizo_kernels import ZerothOrder, wrap
from mobizo_kernels.lora import adapter_layers, base_dtype, model_fingerprint, rounds_inputs
from mobizo_kernels.models import quantize_base

pytest.importorskip("torchao")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("int8-dynamic", 0.04), ("int4", 0.3)])
def test_steps(kind: str, error: float, dtype: torch.dtype, rng: torch.Generator) -> None:
    model, plain = tiny.llama().to(dtype), tiny.llama().to(dtype)
    quantize_base(model, kind)
    ids = torch.randint(3, tiny.VOCABULARY, (2, 9), generator=rng)
    with torch.no_grad():
        got, expected = model(ids).logits.float(), plain(ids).logits.float()
    assert 1e-4 < (got - expected).norm() / expected.norm() < error
    assert type(model.lm_head.weight) is nn.Parameter
    assert model_fingerprint(model) != model_fingerprint(plain)

    for subject in (model, plain):
        wrap(subject, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    batch = tiny.batch(rng)
    steps = [ZerothOrder(subject, queries=3, lr=0.1, run_seed=5).step(batch) for subject in (model, plain)]
    torch.testing.assert_close(steps[0].losses, steps[1].losses, rtol=error, atol=error)
    for layer in adapter_layers(model).values():
        assert layer.lora_b.dtype == torch.float32 and layer.lora_b.abs().sum() > 0


def dynamic_linear(bias: bool, rng: torch.Generator) -> tuple[nn.Linear, np.ndarray]:
    """A linear of 33 inputs and 16 outputs of "int8-dynamic", and its weight before."""
    model = nn.Sequential(nn.Linear(33, 16, bias=bias)).requires_grad_(False)
    weight = torch.randn(16, 33, generator=rng)
    model[0].weight.data.copy_(weight)
    quantize_base(model, "int8-dynamic")
    return model[0], weight.double().numpy()


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_one_of_whole_numbers(bias: bool, rng: torch.Generator) -> None:
    """Against float64: a scale for each output, a range from least to greatest for each row of the input."""
    linear, weight = dynamic_linear(bias, rng)
    rounded = linear.weight.dequantize().double().numpy()
    assert (np.abs(rounded - weight) <= 1.001 * np.abs(weight).max(axis=1, keepdims=True) / 255).all()
    x = (torch.randn(5, 33, generator=rng) + 1) * torch.tensor([[1e-3], [1.0], [1e3], [5.0], [0.0]])
    rows = x.double().numpy()
    least, greatest = np.minimum(rows.min(1), 0)[:, None], np.maximum(rows.max(1), 0)[:, None]
    scales = np.maximum((greatest - least) / 255, np.finfo(np.float32).eps)
    zeros = np.clip(-128 - np.rint(least / scales), -128, 127)
    whole = np.clip(np.rint(rows / scales) + zeros, -128, 127) - zeros
    expected = (whole * scales) @ rounded.T + (linear.bias.double().numpy() if bias else 0.0)
    np.testing.assert_allclose(linear(x), expected, rtol=1e-5, atol=1e-6)


def test_a_row_is_rounded_by_itself(rng: torch.Generator) -> None:
    """So the groups of a step stay independent: whatever another row holds, the bits are the same."""
    linear, _ = dynamic_linear(True, rng)
    x = torch.randn(4, 3, 33, generator=rng)
    others = x.clone()
    others[1:] *= 1e4
    assert torch.equal(linear(others)[0], linear(x)[0])
    assert torch.equal(linear(x[:1, :1])[0], linear(x)[0, :1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_share_over_rounded_inputs(dtype: torch.dtype, rng: torch.Generator) -> None:
    model = tiny.llama().to(dtype)
    quantize_base(model, "int8-dynamic")
    assert rounds_inputs(model)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be shared")
        ZerothOrder(wrap(model, config), queries=3).step(tiny.batch(rng))


def test_a_run_goes_on_over_the_same_rounding(tmp_path: Path, rng: torch.Generator) -> None:
    """The weights are the same, and so is their fingerprint; losses are not."""
    models = {}
    for kind in ("int8", "int8-dynamic"):
        models[kind] = tiny.llama()
        quantize_base(models[kind], kind)
        wrap(models[kind], peft.LoraConfig(r=4, target_modules=["q_proj"]))
    dynamic, weights = models["int8-dynamic"], models["int8"]
    assert model_fingerprint(dynamic) == model_fingerprint(weights)
    assert (base_dtype(dynamic), base_dtype(weights)) == ("float32+dynamic", "float32")
    zo = ZerothOrder(dynamic, journal=tmp_path / "journal")
    zo.step(tiny.batch(rng))
    assert zo.journal is not None
    zo.journal.close()
    with pytest.raises(ValueError, match="base_dtype is 'float32.dynamic' there, but 'float32' in this run"):
        ZerothOrder(weights, journal=tmp_path / "journal", resume=True)


def test_a_small_eps_is_lost_in_the_rounding() -> None:
    model = tiny.llama()
    quantize_base(model, "int8-dynamic")
    wrap(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.warns(UserWarning, match="eps=0.001 is outside of .* of a base whose linears round"):
        ZerothOrder(model, eps=1e-3)


def test_no_other_kind() -> None:
    with pytest.raises(
        ValueError, match="quantization must be one of none, int8, int8-dynamic, int4, got 'int2'"
    ):
        quantize_base(tiny.llama(), "int2")
