"""A step over several batches: one estimate, that of their rows in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig
from torch import nn

import mobizo_kernels as mobizo
from mobizo_kernels.zo import tuned_parameters

Batch = dict[str, torch.Tensor]


def parts(rng: torch.Generator) -> list[Batch]:
    """Batches of unequal rows, widths, labels and sides of padding."""
    return [
        tiny.batch(rng, (7, 5, 9), labelled=2),
        tiny.batch(rng, (4,), labelled=3),
        tiny.batch(rng, (6, 11), labelled=1, side="right"),
    ]


def together(batches: list[Batch]) -> Batch:
    """All rows in one batch, filled up on the right by masked tokens."""
    width = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.cat(
            [nn.functional.pad(b[name], (0, width - b[name].shape[1]), value=value) for b in batches]
        )
        for name, value in fill.items()
    }


def model(kind: str) -> Any:
    made = tiny.llama()
    if kind == "adapters":
        return mobizo.wrap(made, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]))
    return mobizo.wrap_parameters(made) if kind == "outer" else made


@pytest.mark.parametrize("kind", ["adapters", "outer", "parameters"])
def test_one_estimate_of_all_rows(kind: str, rng: torch.Generator) -> None:
    batches, outputs, tuned = parts(rng), [], []
    distribution = "outer" if kind == "outer" else "gaussian"
    for batch in (batches, together(batches)):
        one = model(kind)
        zo = mobizo.ZerothOrder(one, queries=2, eps=1e-2, lr=1e-2, distribution=distribution)
        outputs.append(zo.step(batch))
        tuned.append([parameter.clone() for _, parameter in tuned_parameters(one)])
        assert zo.steps == 1
    torch.testing.assert_close(outputs[0].losses, outputs[1].losses, rtol=2e-5, atol=0)
    torch.testing.assert_close(outputs[0].projected_grads, outputs[1].projected_grads, rtol=2e-2, atol=2e-2)
    for several, whole in zip(*tuned, strict=True):
        torch.testing.assert_close(several, whole, rtol=2e-2, atol=1e-3)


def test_a_list_of_one_has_the_same_bits(rng: torch.Generator) -> None:
    batch = tiny.batch(rng)
    one, other = (mobizo.ZerothOrder(model("adapters"), lr=0.1) for _ in range(2))
    assert_same_bits(one.step(batch).losses, other.step([batch]).losses)


def test_a_batch_without_labels_has_no_weight(rng: torch.Generator) -> None:
    batch = tiny.batch(rng)
    none = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    one, other = (mobizo.ZerothOrder(model("adapters"), lr=0.1) for _ in range(2))
    assert_same_bits(one.step(batch).losses, other.step([none, batch, none]).losses)
    with pytest.raises(ValueError, match="no label"):
        one.step([none, none])
    assert one.steps == 1


def test_an_objective_weighs_rows(rng: torch.Generator) -> None:
    def rows(model: nn.Module, batch: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
        return batch["input_ids"].shape[1] + torch.arange(groups, dtype=torch.float32)

    out = mobizo.ZerothOrder(model("adapters"), queries=2).step(parts(rng), objective=rows)
    widths = (3 * 9 + 1 * 4 + 2 * 11) / 6
    assert out.losses.tolist() == pytest.approx([widths + group for group in range(4)])


@pytest.mark.parametrize("batch", [[], [[]], [3]])
def test_what_is_no_batch(batch: Any) -> None:
    with pytest.raises(ValueError, match="batch must be a mapping of tensors, or a sequence of them, got"):
        mobizo.ZerothOrder(model("adapters")).step(batch)
