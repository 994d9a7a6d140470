"""Parts of a decoder in the forms that a program has them: each computes what the original does."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import tiny
import torch
import transformers
from architectures import CASES, GROUPED, SIZES
from torch import nn

import mobizo_kernels as mobizo
from mobizo_kernels.executorch.experts import WideExperts, replace_experts
from mobizo_kernels.executorch.quantization import Int8Embedding, quantize
from mobizo_kernels.executorch.rotation import hold_frequencies
from mobizo_kernels.lora import adapter_layers


def logits(model: Any, tokens: int = 9) -> torch.Tensor:
    ids = (torch.arange(2 * tokens) * 7 % tiny.VOCABULARY).view(2, tokens)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.05), ("int8-dynamic", 0.1), ("int4", 0.5)])
@pytest.mark.parametrize("name", CASES)
def test_quantised_decoders_are_what_they_were(name: str, kind: str, error: float) -> None:
    """Up to rounding: factors of embeddings, biases, transposed weights are kept; no linear is left out."""
    model, plain = tiny.causal_lm(CASES[name].config), tiny.causal_lm(CASES[name].config)
    replace_experts(model)
    quantize(model, kind)
    assert 1e-4 < (logits(model) - logits(plain)).norm() / logits(plain).norm() < error
    for path, module in model.named_modules():
        assert not isinstance(module, transformers.pytorch_utils.Conv1D), path
        if isinstance(module, nn.Linear):
            assert type(module.weight.data) is not torch.Tensor, path
    assert isinstance(model.get_input_embeddings(), Int8Embedding)


@pytest.mark.parametrize("head", [True, False])
def test_a_tied_head_with_an_adapter(head: bool, rng: torch.Generator) -> None:
    """It is computed as a whole, so it is quantised even where other heads are not."""
    model, plain = (tiny.llama(tie_word_embeddings=True) for _ in range(2))
    mobizo.wrap(model, peft.LoraConfig(r=4, target_modules=["lm_head"]))
    quantize(model, "int8", head=head)
    assert 1e-4 < (logits(model) - logits(plain)).norm() / logits(plain).norm() < 0.05
    assert type(adapter_layers(model)["lm_head"].weight.data) is not torch.Tensor


def test_weights_that_are_not_of_linears_are_refused() -> None:
    config = transformers.GptOssConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    model = tiny.causal_lm(config)
    replace_experts(model)  # these have biases, and gates of another kind
    assert not any(isinstance(module, WideExperts) for module in model.modules())
    with pytest.raises(ValueError, match="quantization must be none for GptOss.*experts.gate_up_proj is not"):
        quantize(model, "int8")


@pytest.mark.parametrize("experts", [1, 3, 8])
def test_experts_side_by_side(experts: int, rng: torch.Generator) -> None:
    k = min(2, experts)
    config = transformers.MixtralConfig(**GROUPED, num_local_experts=experts, num_experts_per_tok=k)
    model = tiny.causal_lm(config)
    mlp = model.model.layers[0].mlp
    x = torch.randn(3, 5, 32, generator=rng)
    expected = mlp(x)
    replace_experts(model)
    assert isinstance(mlp.experts, WideExperts)
    torch.testing.assert_close(mlp(x), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


ROPES: dict[str, transformers.PretrainedConfig] = {
    "dynamic": CASES["Llama"].config,
    "longrope": CASES["Phi-3"].config,
}


@pytest.mark.parametrize(("name", "limit"), [("dynamic", 64), ("longrope", 32)])
def test_frequencies_are_held_up_to_where_they_change(name: str, limit: int) -> None:
    model, plain = tiny.causal_lm(ROPES[name]), tiny.causal_lm(ROPES[name])
    with pytest.raises(ValueError, match=f"at most {limit}, got {limit + 1}.*ForCausalLM.*{name}"):
        hold_frequencies(model, limit + 1)
    logits(model, limit + 9)  # a model may have seen longer ones before
    with torch.no_grad():
        hold_frequencies(model, limit)
    assert torch.equal(logits(model, limit), logits(plain, limit))
    assert not torch.allclose(logits(model, limit + 9), logits(plain, limit + 9), atol=1e-3)


def test_other_frequencies_are_left_alone() -> None:
    model = tiny.causal_lm(transformers.GPTNeoXConfig(**SIZES))
    hold_frequencies(model, 10**6)
    assert torch.equal(logits(model), logits(tiny.causal_lm(transformers.GPTNeoXConfig(**SIZES))))
