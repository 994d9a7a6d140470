"""What `mobizo train --dry-run` finds: what a run would be made of and would take. Nothing is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

from mobizo_kernels.cli.memory import peak_rss_mb, reset_peak_rss
from mobizo_kernels.cli.prepare import Prepared
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.task_settings import as_json
from mobizo_kernels.data import EncodedExample
from mobizo_kernels.lora import tuned_layers
from mobizo_kernels.training.fit import tensors_of
from mobizo_kernels.zo import Objective

_SCORED = 16  # rows whose scoring is timed


def dry_run(
    run: Prepared,
    score: Callable[[list[EncodedExample]], object],
    objective: Objective | None,
    labels: Sequence[str],
    settings: TrainSettings,
) -> dict[str, Any]:
    """Make two steps, of which the second is timed, and score a few rows. The model is of no use afterwards.

    Args:
        run: that is not made.
        score: scores rows, as before the first step and behind the last.
        objective: of the steps.
        labels: by their numbers; none where answers are free.
        settings: of the run.

    Returns:
        Rows, their lengths and classes, what is tuned, seconds and peak memory of a step, and what all steps
        and all scoring take if the rest is like what was timed. What a model writes is not timed.
    """
    first, second = (tensors_of(next(run.batches), run.pad_token) for _ in range(2))
    shaping = settings.reward_shaping
    run.zo.step(first, objective=objective, shaping=shaping)  # allocates, and starts threads
    reset_peak_rss()
    started = perf_counter()
    run.zo.step(second, objective=objective, shaping=shaping)
    step = perf_counter() - started
    few = sorted(run.validation, key=lambda row: len(row.input_ids))[
        :: max(1, len(run.validation) // _SCORED)
    ]
    started = perf_counter()
    score(few)
    row = (perf_counter() - started) / len(few)
    every = settings.eval_every or math.ceil(settings.steps / 10)
    validations = 1 + math.ceil(settings.steps / every)
    scored = validations * len(run.validation) + 2 * len(run.test)
    if labels:  # the bias of the untuned model, a readout and what it gives
        scored += min(settings.eval_rows, len(run.examples))
        if settings.start != "zero":
            scored += min(settings.readout_rows, len(run.examples)) + len(run.validation) + len(run.test)
    layers = tuned_layers(run.model).values()
    lengths = sorted(len(example.input_ids) for example in run.examples)
    counts = Counter(example.label for example in run.examples)
    return {
        "dry_run": True,
        "train_rows": len(run.examples),
        "validation_rows": len(run.validation),
        "test_rows": len(run.test),
        "classes": {name: counts[number] for number, name in enumerate(labels)},
        "tokens_of_a_row": [lengths[0], median(lengths), lengths[-1]],
        "steps": settings.steps,
        "rows_of_a_step": settings.step_rows,
        "times_round": round(settings.steps * settings.step_rows / len(run.examples), 2),
        "groups": run.zo.estimator.groups,
        "adapted_linears": len(layers),
        "tuned_parameters": sum(layer.lora_b.numel() for layer in layers),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "step_seconds": round(step, 3),
        "tuning_seconds": round(settings.steps * step, 1),
        "rows_scored": scored,
        "scoring_seconds": round(scored * row, 1),
        "settings": as_json(settings),
    }
