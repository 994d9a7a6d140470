"""Probes of one block of layers each: a direction is zero but there, and a block has a step of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from benchmarks.study.setting import Recipe
from mobizo_kernels.lora import adapter_of, tuned_layers
from mobizo_kernels.lora.linear import Directions
from mobizo_kernels.optim import ZOSGD
from mobizo_kernels.optim.seeds import query_seeds
from mobizo_kernels.zo import ZerothOrder, make_estimator, tuned_parameters


class Blocks:
    """Neighbouring adapted linears of a wrapped model in blocks of about one size, each with an equal share
    of the queries.

    Args:
        model: wrapped. Its linears get directions of their blocks, of two sides.
        recipe: with `queries`, a multiple of `blocks`, and what else its steps are of.
    """

    def __init__(self, model: Any, recipe: Recipe) -> None:
        layers, parameters = list(tuned_layers(model).values()), tuned_parameters(model)
        estimator = make_estimator(
            recipe.estimator, queries=recipe.queries, eps=recipe.eps, normalize=recipe.normalize
        )
        self._one = replace(estimator, queries=recipe.queries // recipe.blocks)
        query = torch.tensor([query for query, _ in estimator.plan()])
        self._blocks = []
        for block in range(recipe.blocks):
            part = slice(len(layers) * block // recipe.blocks, len(layers) * (block + 1) // recipe.blocks)
            touched = query % recipe.blocks == block
            for layer in layers[part]:
                layer.directions = BlockDirections(adapter_of(model).directions, touched)
            optimizer = ZOSGD(parameters[part], recipe.lr, distribution=recipe.distribution)
            self._blocks.append((slice(block, None, recipe.blocks), touched, optimizer))

    def step(self, zo: ZerothOrder, batch: dict[str, torch.Tensor], lr: float) -> None:
        """One forward of all groups; then a step of each block along its own directions."""
        losses = zo.losses(batch).losses
        seeds = query_seeds(zo.run_seed, zo.steps, zo.estimator.queries)
        for queries, touched, optimizer in self._blocks:
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step(seeds[queries], self._one.projected_gradients(losses[touched]))
        zo.steps += 1


class BlockDirections(nn.Module):
    """Those that all adapters of a model share, with coefficients of 0 for groups that leave a block alone.

    Args:
        shared: by the adapters.
        touched: bool [G], whether a group touches the block.
    """

    def __init__(self, shared: Directions, touched: torch.Tensor) -> None:
        super().__init__()
        self._shared, self._touched = (shared,), touched  # in a tuple: not a module inside each linear

    @property
    def seeds(self) -> torch.Tensor:
        return self._shared[0].seeds

    @property
    def coeffs(self) -> torch.Tensor:
        coeffs = self._shared[0].coeffs
        return coeffs * self._touched if len(coeffs) == len(self._touched) else coeffs

    @property
    def distribution(self) -> str:
        return self._shared[0].distribution

    @property
    def active(self) -> torch.Tensor | bool | None:
        return self._shared[0].active
