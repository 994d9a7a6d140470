"""The loop of a run on losses that are made up."""

from __future__ import annotations

import itertools

import pytest
import tiny
import torch
from peft import LoraConfig

from mobizo_kernels import ZerothOrder, wrap
from mobizo_kernels.data import EncodedExample
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.optim import Records
from mobizo_kernels.training import Curve, tune

WORDS = [5, 7]  # of the two labels
STEPS = 40


def run(monkeypatch: pytest.MonkeyPatch, *, stop_unsteady: bool) -> Curve:
    """A run of a model that stays as it is, while its training losses jump at step 30."""
    model = tiny.llama()
    wrap(model, LoraConfig(r=3, target_modules=["q_proj"]))
    zo = ZerothOrder(model, queries=2, lr=0.0)
    losses = itertools.chain(itertools.repeat(0.5, 30), itertools.repeat(4.0))
    monkeypatch.setattr(zo, "_batched_losses", lambda *args: torch.full((4,), next(losses)))
    rows = [EncodedExample([9, 11, 13, WORDS[label]], label) for label in (0, 1)]
    return tune(
        zo,
        LabelledLoss(model, candidate_tokens=WORDS),
        itertools.repeat(rows),
        rows,
        pad_token=0,
        recorded=Records.none(2),
        steps=STEPS,
        stop_unsteady=stop_unsteady,
    )


def test_a_loss_that_runs_away_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    curve = run(monkeypatch, stop_unsteady=False)
    assert curve.losses == [0.5] * 30 + [4.0] * 10 and not curve.stopped
    assert len(caplog.messages) == 1 and "the loss runs away at step 3" in caplog.messages[0]


def test_a_loss_that_runs_away_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = run(monkeypatch, stop_unsteady=True)
    assert curve.stopped and 30 < len(curve.losses) <= 33
    assert curve.validation[-1]["step"] == len(curve.losses)
