"""One run of the recipe study: a model tuned within a budget of processor time, scored along the way."""

from __future__ import annotations

import itertools
import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.study.readouts import LayerReadout, layer_states, read_out
from benchmarks.study.setting import Material, Recipe, material, wrapped_model
from benchmarks.study.steps import STEPS
from mobizo_kernels.data import EncodedExample, collate, training_batches
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.training import Keeper, Scored, rows_in_turn, score_rows
from mobizo_kernels.zo import tuned_parameters


@lru_cache(maxsize=1)
def prefix_states(task: str, tail: int, dtype: str) -> StateStore:
    """Of the held-out rows, for all runs of the process."""
    return StateStore(2**32)


def run(recipe: Recipe) -> dict[str, Any]:
    """Tune and score.

    Returns:
        The curve: for each evaluation the seconds and steps so far, validation loss, accuracy and AUC; and
        the test quality of the adapter that `Selection` keeps, as "best", of the last one, of a readout, and
        of the means of B over the last half and quarter of the steps.
    """
    data = material(recipe.task, recipe.selection_rows)
    if recipe.method in ("best-layer", "layers"):
        return _layer_readout(recipe, data)
    model = wrapped_model(recipe, data, recipe.dtype)
    store = prefix_states(recipe.task, recipe.tail, recipe.dtype)
    evaluation = LabelledLoss(model, candidate_tokens=data.candidates, store=store)

    def held_out() -> dict[str, Any]:
        _, quality = scored(evaluation, data.test, data.pad)
        if not data.selection:
            return quality
        return quality | {"selection": scored(evaluation, data.selection, data.pad)[1]}

    start: dict[str, Any] = {}
    spent, steps, tokens = 0.0, 0, 0
    if recipe.readout_rows:
        found = read_out(recipe, model, data, store)
        spent += found["seconds"]
        tokens += found.pop("tokens")
        start = {"readout": found | held_out()}
    begun = spent
    means = {"mean of the last half": Mean(model, 0.5), "mean of the last quarter": Mean(model, 0.75)}
    take_step = STEPS[recipe.method](recipe, model, data) if recipe.method != "none" else None
    rows = data.train[: recipe.train_rows] if recipe.train_rows else data.train
    batches = training_batches(rows, recipe.batch_size, recipe.seed)

    curve: list[dict[str, float]] = []
    keeper = Keeper(model)

    def validate() -> None:
        losses, quality = scored(evaluation, data.validation, data.pad)
        curve.append({"seconds": spent, "steps": steps, "tokens": tokens, "loss": losses.mean(), **quality})
        keeper.offer(losses)

    validate()
    due = itertools.count(1)
    whole = recipe.seconds - begun

    def progress() -> float:
        return steps / recipe.max_steps if recipe.max_steps else (spent - begun) / whole

    next_validation = next(due)
    while take_step is not None and progress() < 1 and spent < recipe.seconds:
        batch = collate(next(batches), data.pad)
        started = time.process_time()
        tokens += take_step(batch, 1 - progress() if recipe.decay else 1.0)
        spent += time.process_time() - started
        steps += 1
        for mean in means.values():
            mean.take(progress())
        if 10 * progress() >= next_validation:
            validate()
            next_validation = next(due)
    found = {"curve": curve, "steps": steps, "tokens": tokens, "last": held_out()}
    if steps and recipe.method in ("zo", "exact-gradient-kept"):
        for name, mean in means.items():
            mean.put()
            found[name] = held_out()
    keeper.restore()
    return found | {"best": held_out(), **start}


class Mean:
    """The mean of what is tuned over the steps from a share of a run on."""

    def __init__(self, model: Any, begin: float) -> None:
        self._parameters = [parameter for _, parameter in tuned_parameters(model)]
        self._begin, self._count = begin, 0
        self._sums = [torch.zeros_like(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def take(self, progress: float) -> None:
        """The parameters behind a step, after which so much of the run is over."""
        if progress > self._begin:
            self._count += 1
            torch._foreach_add_(self._sums, self._parameters)

    @torch.no_grad()
    def put(self) -> None:
        """Into the model."""
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.copy_(total / self._count)


def _layer_readout(recipe: Recipe, data: Material) -> dict[str, Any]:
    """`run` for a classifier beside the model."""
    states = layer_states(recipe.task, recipe.dtype)
    rows = rows_in_turn(data.train, recipe.readout_rows, recipe.seed)
    states([*rows, *data.validation])
    started = time.process_time()
    found = LayerReadout(states, rows, data.validation, recipe.method == "layers")
    spent = time.process_time() - started + states.seconds([*rows, *data.validation])
    labels = np.array([row.label for row in data.test])
    last = _quality(Scored(np.log(found.probabilities(data.test)), labels))
    about = {"layers": found.layers, "penalty": found.penalty, "seconds": spent}
    tokens = sum(len(row.input_ids) - 1 for row in [*rows, *data.validation])
    ends = {"last": last, "best": last, "readout": {**about, **last}}
    return {"curve": [], "steps": 0, "tokens": tokens, **ends}


def scored(
    loss: LabelledLoss, rows: list[EncodedExample], pad: int
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Cross-entropy of each row, and of all balanced accuracy and AUC (the mean over label pairs)."""
    found = score_rows(loss, rows, pad)
    return found.losses, _quality(found)


def _quality(found: Scored) -> dict[str, Any]:
    return {"accuracy": found.balanced_accuracy, "auc": float("nan") if found.auc is None else found.auc}
