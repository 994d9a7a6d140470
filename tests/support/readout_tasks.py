"""Tiny programs that a readout can begin, rows that tell it something, and what eager makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from programs import CANDIDATES, activated_rows, eager_twin, tiny_dataset, tiny_llama, tiny_rows

from mobizo_kernels.data import EncodedExample
from mobizo_kernels.executorch import EvaluationResult, Readout, Trainer
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training import readout
from mobizo_kernels.training.readout import numbers_in_turn

INVOCATION = [7, 8]
ACTIVATED: dict[str, Any] = {"layers_to_transform": [1, 2], "alora_invocation_tokens": INVOCATION}
HEAD_A, HEAD_B = (f"base_model.model.lm_head.lora_{factor}.weight" for factor in "AB")
PLAIN: dict[str, Any] = {}
DELEGATED: dict[str, Any] = {"distribution": "outer", "lowering": "delegated"}
SHARING: dict[str, Any] = {"layers": 3, "adapter": ACTIVATED, "tail_length": 4}
USED = 50  # rows that are read out


def telling_rows(rng: torch.Generator, activated: bool, count: int = 120) -> list[EncodedExample]:
    """Rows of which a token says the label, mostly."""
    if activated:
        shapes = [(3 + number % 17, 2 + number % 3) for number in range(count)]
        rows = activated_rows(rng, shapes, INVOCATION)
    else:
        rows = tiny_rows(rng, [5 + number % 20 for number in range(count)])
    for row in rows:
        if torch.rand((), generator=rng) < 0.9:
            row.input_ids[0 if activated else -2] = 20 + row.label
    return rows


class Task:
    """A program, rows for it in a file, and the eager model that it holds."""

    def __init__(self, program: Path, options: dict[str, Any], folder: Path, rng: torch.Generator) -> None:
        self.program, self.options = program, options
        rows = telling_rows(rng, options is SHARING)
        self.train, self.validation, self.test = rows[:70], rows[70:100], rows[100:]
        self.in_turn = list(numbers_in_turn(self.train, 3))
        self.dataset = self.write(folder / "data.safetensors", rng)
        self.rows = [self.train[number] for number in self.in_turn[:USED]]

    def write(self, path: Path, rng: torch.Generator, **changes: Any) -> Path:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return tiny_dataset(path, rng, **{**parts, "in_turn": tuple(self.in_turn), **changes})

    def base(self) -> Any:
        return tiny_llama(self.options.get("layers", 1))

    def eager(self) -> Any:
        """With the readout that eager makes."""
        model = eager_twin(self.options.get("layers", 1), **self.options.get("adapter", {}))
        self.found = readout(LabelledLoss(model, candidate_tokens=CANDIDATES), self.rows, self.validation)
        return model

    def native(self) -> tuple[Trainer, Readout]:
        trainer = Trainer(self.program)
        return trainer, trainer.read_out(self.dataset, rows=USED)


def solution(adapter: dict[str, Any]) -> torch.Tensor:
    """What is added to the rows of the head, [V, H]."""
    return torch.from_numpy(adapter[HEAD_B]) @ torch.from_numpy(adapter[HEAD_A])


def balanced_loss(found: EvaluationResult) -> float:
    """With which the ridge is chosen: the rows of each label weigh the same."""
    scores = torch.from_numpy(found.scores).double()
    losses = F.cross_entropy(scores, torch.from_numpy(found.labels).long(), reduction="none")
    return float(np.mean([losses[found.labels == label].mean() for label in (0, 1)]))


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in trainer.adapter().items()}
