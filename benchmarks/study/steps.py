"""The step of each method: takes a batch and a factor of the learning rate, gives the tokens forwarded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

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
    zo = ZerothOrder(
        model,
        queries=recipe.queries,
        eps=recipe.eps,
        lr=recipe.lr,
        run_seed=recipe.seed,
        estimator=recipe.estimator,
        distribution=recipe.distribution,
        normalize=recipe.normalize,
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
        candidate_tokens=data.candidates,
    )
    if recipe.kept:
        zo.loss.store = StateStore(2**31)

    def take_step(batch: dict[str, torch.Tensor], factor: float) -> int:
        zo.optimizer.param_groups[0]["lr"] = recipe.lr * factor
        zo.step(batch)
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
