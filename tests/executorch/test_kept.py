"""What a run keeps whose loss ran away, and that it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from programs import assert_same_adapter, lora_b_of, tiny_dataset, tiny_program, tiny_rows

from mobizo_kernels.executorch import TextReward, Trainer
from mobizo_kernels.journal import read_journal


def test_a_run_that_runs_away_is_ended(program: Path, dataset: Path, tmp_path: Path) -> None:
    """By its validation; the untuned adapter is kept, and a resumed run ends at the same step."""
    journal, run = tmp_path / "journal", {"steps": 40, "eval_every": 4, "lr": 1e38, "lr_schedule": "constant"}
    results = []
    for _ in range(2):
        trainer = Trainer(program)
        results.append(trainer.train(dataset, **run, journal=journal, resume=True))
        assert not any(b.any() for b in lora_b_of(trainer))
    first, again = results
    assert first.stopped and first.best_step == 0
    assert (first.steps, first.evaluations[-1].step, len(read_journal(journal)[1])) == (4, 4, 4)
    assert (again.steps, again.stopped, again.resumed_steps) == (4, True, 4)
    assert str(again.evaluations) == str(first.evaluations)  # NaN included
    on = Trainer(program).train(dataset, **{**run, "steps": 12}, stop_unsteady=False)
    assert (on.steps, on.stopped) == (12, False)


@pytest.mark.parametrize(("stop_unsteady", "best"), [(True, 1), (False, 2)])
def test_the_best_is_kept(
    stop_unsteady: bool, best: int, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path,
    rng: torch.Generator,
) -> None:  # fmt: skip
    """Two rows that differ much don't tell the last adapter to be worse than it."""
    program, held_out = tiny_program(tmp_path_factory, context=40), iter([0.5, 0.5, 0.4, 0.4, 0.1, 2.0])

    def reward(prompt: str, answers: list[str], reference: str) -> list[float]:
        return [1 - next(held_out)] if len(answers) == 1 else [0.1 * n for n in range(len(answers))]

    rows = tiny_rows(rng, [9] * 2)
    data = tiny_dataset(tmp_path / "data.safetensors", rng, validation=rows)
    tokenizer = SimpleNamespace(decode=lambda tokens, **_: "")
    run: dict[str, Any] = {"steps": 2, "eval_every": 1, "stop_unsteady": stop_unsteady}
    run["objective"] = TextReward(reward=reward, tokenizer=tokenizer, max_new_tokens=2)
    trainer, same, journal = Trainer(program), Trainer(program), tmp_path / "journal"
    result = trainer.train(data, **run, journal=journal)
    assert [report.loss for report in result.evaluations] == pytest.approx([0.5, 0.4, 1.05])
    assert (result.best_step, result.steps, result.stopped) == (best, 2, False)
    same.replay(journal, until=best)
    assert_same_adapter(trainer, same)
    assert any(b.any() for b in lora_b_of(trainer))
