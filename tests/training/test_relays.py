"""What relays add to the residual stream, what of it later layers see, and which models can have them."""

from __future__ import annotations

from typing import Any, cast

import pytest
import tiny
import torch
from peft import LoraConfig
from transformers import Gemma2Config, GPT2Config, LlamaConfig

from mobizo_kernels import wrap
from mobizo_kernels.lora import adapter_layers
from mobizo_kernels.models import quantize_base
from mobizo_kernels.training.relays import hide, places, relay_layers, write

LAYERS, RANK = 6, 3
LINEARS = [f"{name}_proj" for name in ("q", "k", "v", "gate", "up", "down")]


def wrapped(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    config = LlamaConfig(**{**tiny.SIZES, "num_hidden_layers": LAYERS}, num_key_value_heads=2)
    targets = {"r": RANK, "target_modules": LINEARS, "task_type": "CAUSAL_LM", **options}
    return wrap(tiny.causal_lm(config).to(dtype), LoraConfig(**targets))


def test_maps_are_added_along_columns(rng: torch.Generator) -> None:
    """To what the linear gave, in float64, for inputs that it was not made of; by as many ranks as maps."""
    down = relay_layers(wrapped(), 2)[4].down
    seen, new = (torch.randn(count, down.in_features, generator=rng) for count in (60, 11))
    maps = torch.randn(2, down.in_features, generator=rng).double()
    columns = torch.randn(down.out_features, 2, generator=rng).double()
    drawn = down.lora_a.clone()
    expected = new.double() @ (down.weight.double().T + maps.T @ columns.T)
    write(down, seen.double(), maps, columns)
    torch.testing.assert_close(down(new).double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert torch.equal(down.lora_a[2:], drawn[2:]) and not down.lora_b[:, 2:].any()
    sizes = [(seen @ part.T).square().mean().sqrt().item() for part in (down.lora_a[:2], drawn)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-4)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_axes_are_hidden(quantization: Any, rng: torch.Generator) -> None:
    """What lies along them changes the length of a state for a norm, and nothing else."""
    model = wrapped()
    quantize_base(model, quantization)
    layer = relay_layers(model, RANK)[5]
    for norm in set(layer.readers.values()):
        next(norm.parameters()).data.uniform_(0.5, 2, generator=rng)
    width = layer.down.out_features
    states, along = torch.randn(9, width, generator=rng), 3 * torch.randn(9, RANK, generator=rng)
    axes = torch.linalg.qr(torch.randn(width, RANK, generator=rng).double()).Q.T
    quiet = (states.double() - states.double() @ axes.T @ axes).float()
    expected = {
        linear: linear.base_layer(quiet * cast(torch.Tensor, norm.weight))
        for linear, norm in layer.readers.items()
    }
    hide(layer, axes)
    for linear, norm in layer.readers.items():
        moved = states + along @ axes.float()
        length = moved.square().mean(dim=1, keepdim=True).sqrt()
        got = linear(norm(moved)) * length
        bound = 1e-4 * expected[linear].abs().max().item()
        torch.testing.assert_close(got, expected[linear], rtol=0, atol=bound)
    assert not layer.down.lora_b.any()


def test_which_layers_are_read() -> None:
    assert list(relay_layers(wrapped(), RANK)) == [4, 5] == places(relay_layers(wrapped(), RANK))
    assert places(range(20, 30)) == [20, 23, 26, 29]
    assert places([]) == []


def trained() -> Any:
    model = wrapped()
    adapter_layers(model)["model.layers.5.mlp.up_proj"].lora_b.data[0, 0] = 1
    return model


def of_another_kind(model: Any, **options: Any) -> Any:
    return wrap(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM", **options))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: wrapped(r=2), "rank 3 for 4 labels, got 2"),
        (lambda: wrapped(layers_to_transform=[5]), "adapters in all linears of its upper third; layer 4 of"),
        (lambda: wrapped(target_modules=LINEARS[1:]), "layer 4 of this LlamaForCausalLM is no such"),
        (lambda: wrapped(target_modules=[*LINEARS, "lm_head"]), "the LM head of LlamaForCausalLM has an ad"),
        (trained, "needs adapters that change nothing yet, which those of layer 5 do"),
        (
            lambda: of_another_kind(tiny.causal_lm(GPT2Config(**tiny.SIZES)), fan_in_fan_out=True),
            "a model of the Llama kind",
        ),
        (
            lambda: of_another_kind(
                tiny.causal_lm(Gemma2Config(**tiny.SIZES, num_key_value_heads=2, head_dim=8))
            ),
            "layer 1 of this Gemma2ForCausalLM is no such",
        ),
    ],
    ids=["rank", "layers", "linears", "head", "trained", "gpt2", "gemma2"],
)
def test_models_that_cannot_be_read_so(model: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        relay_layers(model(), RANK)
