"""Free answers: their loss on held-out rows, and runs that they decide on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from tiny import VOCABULARY, batch, cross_entropy, llama, row_logits

from mobizo_kernels import ZerothOrder, wrap
from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.loss import LabelledLoss, labelled_loss
from mobizo_kernels.training import fit, score_answers


def rows(rng: torch.Generator, lengths: tuple[int, ...] = (7, 5, 9, 4)) -> list[EncodedExample]:
    """The last half of each is the answer."""
    return [
        EncodedExample(torch.randint(7, VOCABULARY, (length,), generator=rng).tolist(), -1, length // 2)
        for length in lengths
    ]


def adapted(**options: Any) -> Any:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **options)
    return wrap(llama(), config, seed=1)


def test_losses_are_those_of_the_model(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_loss, "MOST_LOGITS", 3)
    model, examples = llama(), rows(rng)
    scored = score_answers(LabelledLoss(model), examples)
    logits, targets = row_logits(model, collate(examples, 0))
    assert scored.loss == pytest.approx(cross_entropy(logits, targets), rel=1e-5)
    assert scored.perplexity == pytest.approx(np.exp(scored.loss))
    assert scored.losses.mean() == pytest.approx(scored.loss)
    assert scored.tokens.tolist() == [3, 2, 4, 2]
    at = 0
    for total, example in zip(scored.sums, examples, strict=True):
        part = slice(at, at + example.targets)
        assert total / example.targets == pytest.approx(cross_entropy(logits[part], targets[part]), rel=1e-5)
        at += example.targets
    assert (scored.accuracy, scored.balanced_accuracy) == (None, None)


def test_errors_are_those_of_the_model(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_loss, "MOST_LOGITS", 4)
    model, rows = llama(), batch(rng, (7, 5, 9), labelled=3)
    rows["labels"][:, -1] = row_logits(model, rows)[0].argmax(-1)[2::3]  # one of three is right at least
    logits, targets = row_logits(model, rows)
    expected = (logits.argmax(-1) != targets).double().mean().item()
    assert 0 < expected < 1
    assert LabelledLoss(model).errors(rows, 2).tolist() == pytest.approx([expected] * 2)


@pytest.mark.parametrize("invocation", [None, [5, 6]], ids=["everywhere", "activated"])
def test_a_run_is_decided_by_its_answers(
    invocation: list[int] | None, tmp_path: Path, rng: torch.Generator
) -> None:
    def run(steps: int, **options: Any) -> tuple[Any, Any]:
        model = adapted(alora_invocation_tokens=invocation, task_type="CAUSAL_LM")
        zo = ZerothOrder(model, queries=4, lr=0.05, normalize=True, run_seed=3)
        result = fit(zo, [examples], steps=steps, validation=examples, lr_schedule="constant", **options)
        return model, result

    examples = [
        EncodedExample(
            [*row.input_ids[: -row.targets], 5, 6, *row.input_ids[-row.targets :]], -1, row.targets
        )
        for row in rows(rng)
    ]
    model, result = run(12, eval_every=3)
    assert [point.step for point in result.validations] == [0, 3, 6, 9, 12]
    assert result.validations[-1].loss < result.validations[0].loss
    assert (result.validations[0].accuracy, result.validations[0].balanced_accuracy) == (None, None)
    assert result.validations[0].loss == pytest.approx(result.losses[0], rel=0.1)

    journal = tmp_path / "run.journal"
    cut, _ = run(5, eval_every=3, journal=journal, keep="last")
    assert journal.stat().st_size > 0
    state = {name: value for name, value in model.state_dict().items() if name.endswith("lora_b")}
    whole, _ = run(12, eval_every=3, journal=tmp_path / "whole.journal")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in state.items())
