"""The step of each method: takes a batch and a factor of the learning rate, gives the tokens forwarded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.study.blocks import Blocks
from benchmarks.study.first_order import first_order
from benchmarks.study.setting import Material, Recipe
from mobizo_kernels.lora import is_wrapped
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.optim import ZOSGD
from mobizo_kernels.zo import ZerothOrder, tuned_parameters


def _zeroth_order(
    recipe: Recipe, model: Any, data: Material
) -> Callable[[dict[str, torch.Tensor], float], int]:
    store = StateStore(2**31) if recipe.kept else None
    stages = [
        ZerothOrder(
            model,
            queries=recipe.queries << stage,
            eps=recipe.eps,
            lr=recipe.lr,
            run_seed=recipe.seed + 1000 * stage,  # no direction of one stage is tried again in another
            estimator=recipe.estimator,
            distribution=recipe.distribution,
            normalize=recipe.normalize,
            optimizer=recipe.optimizer,
            momentum=recipe.momentum,
            candidate_tokens=data.candidates,
            store=store,
        )
        for stage in range(recipe.stages)
    ]
    blocked = Blocks(model, recipe) if recipe.blocks > 1 else None

    def take_step(batch: dict[str, torch.Tensor], factor: float) -> int:
        zo = stages[min(int((1 - factor) * recipe.stages), recipe.stages - 1)]
        if blocked is None:
            zo.optimizer.param_groups[0]["lr"] = recipe.lr * factor
            zo.step(batch)
        else:
            blocked.step(zo, batch, recipe.lr * factor)
        rows, width = batch["input_ids"].shape
        tail = recipe.tail if is_wrapped(model) and recipe.tail else width - 1
        return rows * (width - 1 - tail) + zo.estimator.groups * rows * tail

    return take_step


def _mezo(recipe: Recipe, model: Any, data: Material) -> Callable[[dict[str, torch.Tensor], float], int]:
    """MeZO (arXiv 2305.17333, Algorithm 1) over LoRA-B with this package's noise: q = 1, a sign at a time."""
    loss = LabelledLoss(model, candidate_tokens=data.candidates)
    optimizer = ZOSGD(tuned_parameters(model), recipe.lr, distribution=recipe.distribution)
    seeds = itertools.count(recipe.seed << 32)

    def take_step(batch: dict[str, torch.Tensor], factor: float) -> int:
        optimizer.param_groups[0]["lr"] = recipe.lr * factor
        seed, eps = torch.tensor([next(seeds)]), torch.tensor([recipe.eps])
        optimizer.perturb(seed, eps)
        plus = loss(batch)
        optimizer.perturb(seed, -2 * eps)
        minus = loss(batch)
        optimizer.step(seed, (plus - minus) / (2 * eps), -eps)
        return 2 * batch["input_ids"][:, :-1].numel()

    return take_step


STEPS = {
    "zo": _zeroth_order,
    "all": _zeroth_order,
    "all-in-turn": _zeroth_order,
    "mezo": _mezo,
    "first-order": first_order,
    "first-order-kept": first_order,
    "exact-gradient": first_order,
    "exact-gradient-kept": first_order,
}
