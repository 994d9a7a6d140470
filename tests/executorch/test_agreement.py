"""What the check before an export takes for the losses of the model, and what not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import tiny
import torch

from mobizo_kernels import wrap
from mobizo_kernels.executorch.agreement import Agreement
from mobizo_kernels.loss import LabelledLoss

GROUPS = 64


@pytest.fixture(scope="module")
def agreement() -> Agreement:
    model = wrap(tiny.llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    loss = LabelledLoss(model, candidate_tokens=[5, 7])
    with torch.no_grad():
        return Agreement(
            loss, rows=2, groups=GROUPS, distribution="rademacher", max_length=16, tail_length=None
        )


def graph(agreement: Agreement, off: torch.Tensor) -> Any:
    """One whose losses are off by this much, in units of 1 + loss."""
    losses = agreement._losses
    return SimpleNamespace(
        model=tiny.llama(),
        readout=False,
        inputs=lambda *directions: directions,
        adapter_inputs=tuple,
        head_input=tuple,
        train_step=lambda *_: losses + off * (1 + losses),
        evaluate=lambda *_: (agreement._logits,),
    )


def test_one_group_is_enough_to_refuse_what_is_not_rounded(agreement: Agreement) -> None:
    agreement.check(graph(agreement, torch.full((GROUPS,), 5e-5)), rounded=False)
    off = torch.zeros(GROUPS)
    off[GROUPS - 1] = 2e-4
    with pytest.raises(ValueError, match="its losses are off by 2.0e-04"):
        agreement.check(graph(agreement, off), rounded=False)


def test_rounding_of_many_groups_is_taken_together(agreement: Agreement, rng: torch.Generator) -> None:
    off = torch.randn(GROUPS, generator=rng)
    off *= 0.015 / off.square().mean().sqrt()
    off[0] = 0.04  # as the furthest of many may be
    agreement.check(graph(agreement, off), rounded=True)
    with pytest.raises(ValueError, match="its losses are off by 4"):
        agreement.check(graph(agreement, torch.full((GROUPS,), -0.04)), rounded=True)
    with pytest.raises(ValueError, match="its losses are off by nan"):
        agreement.check(graph(agreement, torch.full((GROUPS,), float("nan"))), rounded=True)
