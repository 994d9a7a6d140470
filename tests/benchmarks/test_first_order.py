"""Back-propagation through the tail alone gives the loss and the gradient of the whole sequence."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig

from benchmarks.study import first_order
from benchmarks.study.first_order import answer_loss, first_order_twin, label_loss
from mobizo_kernels import wrap
from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.lora import adapter_layers

ENDING = [3, 4]
WORDS = (5, 9)


@pytest.fixture
def twin(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> tuple[Any, Any, dict[str, torch.nn.Parameter]]:
    """A wrapped model, PEFT's of the same memory, and B by path, which is not zero."""
    monkeypatch.setattr(first_order, "load_model", lambda *_: (tiny.llama(), None))
    config = LoraConfig(
        r=3, target_modules=["v_proj", "up_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=ENDING
    )
    model = wrap(tiny.llama(), config, seed=0)
    for layer in adapter_layers(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1, generator=rng)
    return model, *first_order_twin(model, "float32")


def test_the_twin_holds_no_weights_of_its_own(twin: tuple[Any, Any, Any]) -> None:
    model, peft_model, factors = twin
    held = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in peft_model.parameters()} == held
    assert factors.keys() == adapter_layers(model).keys()


@pytest.mark.parametrize("answers", [(1, 1, 1), (2, 5, 3)])
def test_the_tail_alone_has_the_gradient_of_all(
    twin: tuple[Any, Any, dict[str, torch.nn.Parameter]], answers: tuple[int, ...], rng: torch.Generator
) -> None:
    _, model, factors = twin
    rows = []
    for length, targets in zip((6, 4, 9), answers, strict=True):
        text = torch.randint(20, tiny.VOCABULARY, (length + targets,), generator=rng).tolist()
        answer = text[length:] if max(answers) > 1 else [WORDS[length % 2]]
        rows.append(EncodedExample([*text[:length], *ENDING, *answer], -1, targets))
    batch, tail = collate(rows, 0), len(ENDING)
    found = []
    for begin in (None, tail):
        losses = [answer_loss(model, batch, begin)]
        if max(answers) == 1:
            losses.append(label_loss(model, batch, WORDS, begin))
        torch.stack(losses).sum().backward()
        gradients = [b.grad.clone() for b in factors.values() if b.grad is not None]
        assert len(gradients) == len(factors)
        found.append((torch.stack(losses).detach(), gradients))
        model.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert max(gradient.abs().max() for gradient in found[0][1]) > 1e-3
