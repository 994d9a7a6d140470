"""The methods of a training program that train and evaluate, as modules that torch.export can trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mobizo_kernels.executorch.graph import TrainingGraph


class Method(nn.Module):
    """One method of a program over the shared graph; buffers keep their names from method to method."""

    def __init__(self, program: TrainingGraph) -> None:
        super().__init__()
        self.program = program


class TrainStep(Method):
    """The batched forward of a step."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        target_ids: torch.Tensor,
        seeds: torch.Tensor,
        coeffs: torch.Tensor,
        *head: torch.Tensor,
    ) -> Any:
        batch = (input_ids, attention_mask, target_positions, target_ids)
        return self.program.train_step(batch, (seeds, coeffs), head)


class UpdateAndTrainStep(TrainStep):
    """The last step's update, then the batched forward of this one.

    Of plain SGD only: there an update of zeros changes nothing, as the first step needs it, while state and
    weight decay would go on.
    """

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        target_ids: torch.Tensor,
        seeds: torch.Tensor,
        coeffs: torch.Tensor,
        update_seeds: torch.Tensor,
        update_coeffs: torch.Tensor,
        *head: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norm = self.program.update(update_seeds, update_coeffs)
        step = (input_ids, attention_mask, target_positions, target_ids, seeds, coeffs)
        return super().forward(*step, *head), norm


class Evaluate(Method):
    """The logits of the unperturbed model at the target positions and, for a readout, the states there."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        *head: torch.Tensor,
    ) -> Any:
        return self.program.evaluate((input_ids, attention_mask, target_positions), (), head)


class Update(Method):
    """An update alone."""

    def forward(
        self, update_seeds: torch.Tensor, update_coeffs: torch.Tensor, *numbers: torch.Tensor
    ) -> torch.Tensor:
        return self.program.update(update_seeds, update_coeffs, *numbers)


class GetAdapter(Method):
    """Every A, every B; then A of the head [r, H] and its words [C, r], if the program begins with some."""

    def forward(self) -> tuple[torch.Tensor, ...]:
        linears, head = self.program.linears, self.program.first_head or ()
        found = [x.lora_a.clone() for x in linears] + [x.lora_b.clone() for x in linears]
        return tuple(found + [factor.clone() for factor in head])


class SetAdapter(Method):
    """Every B anew, and no trace of earlier updates; returns their sum [1], for a method has to return
    something.
    """

    def forward(self, *lora_b: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(1)
        for linear, value in zip(self.program.linears, lora_b, strict=True):
            linear.lora_b.copy_(value)
            for state in linear.state:
                state.zero_()
            total = total + value.sum()
        return total
