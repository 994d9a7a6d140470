"""Activated LoRA: the adapters act from the last invocation on, as PEFT has it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch

from mobizo_kernels import load_adapter, save_adapter, unwrap, wrap
from mobizo_kernels.lora import adapter_layers, adapter_of, invocation_starts

INVOCATION = [7, 8]


def config(targets: Sequence[str] = ("q_proj", "v_proj"), **options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM",
        **{"alora_invocation_tokens": INVOCATION, **options},
    )  # fmt: skip


@pytest.fixture
def ids(rng: torch.Generator) -> torch.Tensor:
    """Rows with the invocation once, twice, at the end, and not at all."""
    tokens = torch.randint(9, tiny.VOCABULARY, (4, 12), generator=rng)
    for row, column in ((0, 3), (1, 1), (1, 7), (2, 10)):
        tokens[row, column : column + 2] = torch.tensor(INVOCATION)
    return tokens


def tuned(model: Any, rng: torch.Generator) -> Any:
    for layer in adapter_layers(model).values():
        layer.lora_b.data.copy_(torch.randn(layer.lora_b.shape, generator=rng))
    return model


def test_starts_are_those_of_the_last_occurrence(ids: torch.Tensor) -> None:
    assert invocation_starts(ids, INVOCATION).tolist() == [3, 7, 10, -1]
    assert invocation_starts(ids[:, :1], INVOCATION).tolist() == [-1] * 4
    mask = torch.ones_like(ids)
    mask[1, 7] = 0
    assert invocation_starts(ids, INVOCATION, mask).tolist() == [3, 1, 10, -1]


def test_peft_computes_the_same(ids: torch.Tensor, rng: torch.Generator, tmp_path: Path) -> None:
    base = tiny.llama()
    ours = tuned(wrap(copy.deepcopy(base), config()), rng)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    with torch.no_grad():
        expected, plain = theirs(input_ids=ids).logits, base(input_ids=ids).logits
        got = ours(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[3], plain[3])
    torch.testing.assert_close(got[0, :3], plain[0, :3])
    assert (got[0, 3:] - plain[0, 3:]).abs().amax(dim=1).min() > 1e-3
    row = ids[:1]
    wanted = theirs.generate(input_ids=row, max_new_tokens=6, do_sample=False)
    assert ours.generate(row, max_new_tokens=6, do_sample=False).equal(wanted)
    assert adapter_of(ours).directions.active is None


def test_an_adapted_head_acts_where_peft_does(
    ids: torch.Tensor, rng: torch.Generator, tmp_path: Path
) -> None:
    base = tiny.llama()
    ours = tuned(wrap(copy.deepcopy(base), config(["q_proj", "lm_head"])), rng)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    with torch.no_grad():
        expected, plain = theirs(input_ids=ids).logits, base(input_ids=ids).logits
        got = ours(input_ids=ids).logits
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got[3], plain[3])
        for kept in (1, 3, torch.tensor([0, 4, 9])):
            part = expected[:, kept] if isinstance(kept, torch.Tensor) else expected[:, -kept:]
            found = ours(input_ids=ids, logits_to_keep=kept).logits
            torch.testing.assert_close(found, part, rtol=1e-5, atol=1e-5)
    row = ids[:1]
    wanted = theirs.generate(input_ids=row, max_new_tokens=6, do_sample=False)
    assert ours.generate(row, max_new_tokens=6, do_sample=False).equal(wanted)
    assert all(layer.active is None for layer in adapter_layers(ours).values())


def test_loading_brings_the_activation(ids: torch.Tensor, rng: torch.Generator, tmp_path: Path) -> None:
    base = tiny.llama()
    ours = tuned(wrap(copy.deepcopy(base), config()), rng)
    save_adapter(ours, tmp_path)
    with torch.no_grad():
        expected = ours(input_ids=ids).logits
        assert load_adapter(copy.deepcopy(base), tmp_path)(input_ids=ids).logits.equal(expected)
        everywhere = wrap(copy.deepcopy(base), config(alora_invocation_tokens=None))
        assert load_adapter(everywhere, tmp_path)(input_ids=ids).logits.equal(expected)


def test_unwrapping(ids: torch.Tensor) -> None:
    model = wrap(tiny.llama(), config())
    with pytest.raises(ValueError, match="merge=True"):
        unwrap(model, merge=True)
    unwrap(model)
    model(inputs_embeds=model.get_input_embeddings()(ids))  # no hook is left to ask for input_ids


def test_bad_tokens_are_refused() -> None:
    for tokens in ([], ["a"]):
        with pytest.raises(ValueError, match="alora_invocation_tokens"):
            wrap(tiny.llama(), config(alora_invocation_tokens=tokens))
