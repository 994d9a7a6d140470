"""An adapter of the LM head that no run tunes: what PEFT makes of it, what steps leave alone, errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig

from mobizo_kernels import ZerothOrder, load_adapter, save_adapter, unwrap, wrap
from mobizo_kernels.lora import adapt_head, adapter_layers, held_head, hold_head, tuned_layers
from mobizo_kernels.loss import LabelledLoss

WORDS = torch.tensor([5, 9, 7])


def wrapped(model: Any = None, **options: Any) -> Any:
    config = {"r": 3, "target_modules": ["q_proj", "v_proj"], **options}
    return wrap(tiny.llama() if model is None else model, LoraConfig(task_type="CAUSAL_LM", **config))


def with_head(model: Any, rng: torch.Generator) -> Any:
    directions, words = torch.randn(2, 32, generator=rng), torch.randn(3, 2, generator=rng)
    layer = adapt_head(model, WORDS, directions, words)
    assert held_head(model) is layer and layer.scaling == pytest.approx(1)
    assert_same_bits(layer.lora_a, directions)
    assert_same_bits(layer.lora_b[WORDS], words)
    assert int(layer.lora_b.any(dim=1).sum()) == 3
    return model


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (False, {"alora_invocation_tokens": [3, 4]}),
        (True, {"layers_to_transform": [1], "alora_invocation_tokens": [3, 4]}),
        (True, {"target_modules": r".*\.(q|v)_proj", "use_rslora": True}),
        (False, {"rank_pattern": {"q_proj|lm_head": 5}, "alpha_pattern": {".*": 9}}),
    ],
    ids=["activated", "tied, of a layer", "tied, an expression", "patterns"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, of a tied head
def test_peft_loads_one_adapter(
    tied: bool, options: dict[str, Any], tmp_path: Path, rng: torch.Generator
) -> None:
    model = wrapped(tiny.llama(tie_word_embeddings=tied), **options)
    embeddings = model.get_input_embeddings().weight.clone()
    with_head(model, rng)
    for layer in tuned_layers(model).values():
        layer.lora_b.data.normal_(generator=rng).mul_(0.1)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny.llama(tie_word_embeddings=tied), tmp_path).eval()
    again = load_adapter(tiny.llama(tie_word_embeddings=tied), tmp_path)
    ids = torch.randint(10, tiny.VOCABULARY, (3, 6), generator=rng)
    ids[:, 3:5] = torch.tensor([3, 4])
    with torch.no_grad():
        expected = model(input_ids=ids).logits[:, 3:]
        for other in (theirs, again):
            torch.testing.assert_close(other(input_ids=ids).logits[:, 3:], expected, rtol=1e-4, atol=1e-4)
    ours = LabelledLoss(model, candidate_tokens=WORDS.tolist()).logits(
        {"input_ids": ids, "labels": torch.where(torch.arange(6) == 5, ids, -100)}
    )
    torch.testing.assert_close(ours, expected[:, 1, WORDS], rtol=1e-4, atol=1e-4)
    assert_same_bits(model.get_input_embeddings().weight, embeddings)
    assert set(adapter_layers(model)) - set(tuned_layers(model)) == {"lm_head"}
    assert not adapter_layers(unwrap(model)) and type(model.lm_head) is torch.nn.Linear


def test_a_step_tries_no_directions_in_it(rng: torch.Generator) -> None:
    """The losses are those of the model whose head has the adapter merged into its weight."""
    model = with_head(wrapped(), rng)
    merged = wrapped()
    with torch.no_grad():
        merged.lm_head.weight += model.lm_head.lora_b @ model.lm_head.lora_a
    batch = tiny.batch(rng, labelled=1)
    batch["labels"][:, -1] = WORDS
    for candidates in (WORDS.tolist(), None):
        mine, other = copy.deepcopy(model), copy.deepcopy(merged)
        options: dict[str, Any] = {"candidate_tokens": candidates, "queries": 3, "lr": 0.5}
        out, expected = ZerothOrder(mine, **options).step(batch), ZerothOrder(other, **options).step(batch)
        torch.testing.assert_close(out.losses, expected.losses, rtol=1e-5, atol=1e-6)
        assert_same_bits(mine.lm_head.lora_b, model.lm_head.lora_b)
        for name, layer in tuned_layers(mine).items():
            assert layer.lora_b.any()
            difference = layer.lora_b - adapter_layers(other)[name].lora_b
            assert difference.abs().max() < 1e-2 * layer.lora_b.abs().max()


def test_what_was_loaded_can_be_held(tmp_path: Path, rng: torch.Generator) -> None:
    model = with_head(wrapped(), rng)
    save_adapter(model, tmp_path)
    again = load_adapter(tiny.llama(), tmp_path)
    assert held_head(again) is None and "lm_head" in tuned_layers(again)
    hold_head(again)
    assert held_head(again) is again.lm_head and set(tuned_layers(again)) == set(tuned_layers(model))


def test_a_tied_head_can_be_tied_again(rng: torch.Generator) -> None:
    model = with_head(wrapped(tiny.llama(tie_word_embeddings=True)), rng)
    ids = torch.randint(10, tiny.VOCABULARY, (2, 6), generator=rng)
    with torch.no_grad():
        expected = model(ids).logits
        model.tie_weights()
        assert_same_bits(model(ids).logits, expected)
    assert model.get_output_embeddings().base_layer.weight is model.get_input_embeddings().weight
    assert "lm_head.weight" not in dict(model.lm_head.named_parameters(recurse=False))


def test_errors(rng: torch.Generator) -> None:
    a, b = torch.zeros(2, 32), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not wrapped"):
        adapt_head(tiny.llama(), WORDS, a, b)
    with pytest.raises(ValueError, match="the LM head of LlamaForCausalLM has no adapter"):
        hold_head(wrapped())
    model = wrapped(exclude_modules=["lm_head"])
    with pytest.raises(ValueError, match="LoraConfig selects nothing by target_modules=.'lm_head'."):
        adapt_head(model, WORDS, a, b)
    assert type(model.lm_head) is torch.nn.Linear
    alone = wrapped(target_modules=["lm_head"])
    with pytest.raises(ValueError, match="the LM head of LlamaForCausalLM has an adapter already"):
        adapt_head(alone, WORDS, a, b)
    hold_head(alone)
    with pytest.raises(ValueError, match="nothing to tune: LlamaForCausalLM has the adapter of its LM head"):
        ZerothOrder(alone)
