"""Training over base weights of 8 and 4 bits in torch."""

from __future__ import annotations

import peft
import pytest
import tiny
import torch
from torch import nn

from mobizo_kernels import ZerothOrder, wrap
from mobizo_kernels.lora import adapter_layers, model_fingerprint
from mobizo_kernels.models import quantize_base

pytest.importorskip("torchao")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("int4", 0.3)])
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


def test_no_other_kind() -> None:
    with pytest.raises(ValueError, match="quantization must be one of none, int8, int4, got 'int2'"):
        quantize_base(tiny.llama(), "int2")
