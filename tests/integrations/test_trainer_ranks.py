"""ZOTrainer on two ranks, each with its rows, against steps by hand in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig
from rank_runs import collate, trainer_run
from worlds import run_world, same_bits

import mobizo_kernels as mobizo
from mobizo_kernels.journal import read_journal


def rows(rng: torch.Generator, count: int = 16) -> list[dict[str, list[int]]]:
    batches = [tiny.batch(rng, (4 + index % 5,), labelled=1 + index % 3) for index in range(count)]
    return [{name: column[0].tolist() for name, column in batch.items()} for batch in batches]


@pytest.mark.parametrize("kind", ["peft", "parameters"])
def test_two_ranks(kind: str, tmp_path: Path, rng: torch.Generator) -> None:
    data = rows(rng)
    out = tmp_path / "out"
    ranks = run_world(2, trainer_run, (out, kind, data), tmp_path)
    first, other = (straight for straight, _ in ranks)
    assert same_bits([run["tuned"] for rank in ranks for run in rank])
    assert first["losses"] == other["losses"]
    around = "PeftModelForCausalLM" if kind == "peft" else "LlamaForCausalLM"
    assert [run["around"] for rank in ranks for run in rank] == [around] * 4

    model: Any = tiny.llama()
    if kind == "peft":
        lora = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora)
    model.load_state_dict(first["start"])
    zo = mobizo.ZerothOrder(model.eval(), queries=2, eps=1e-2, normalize=True, lr=0.01, run_seed=7)
    losses = []
    for step in range(4):
        zo.optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 4)
        parts = [collate(data[start : start + 2]) for start in (4 * step, 4 * step + 2)]
        losses.append(zo.step(parts).loss)
    if kind == "peft":
        mobizo.to_peft(model)
        assert len(read_journal(out / "checkpoint-4/run.journal")[1]) == 4
    assert first["losses"] == pytest.approx(losses, rel=1e-6)
    for name, tensor in model.named_parameters():
        assert_same_bits(tensor.detach(), first["tuned"][name])
