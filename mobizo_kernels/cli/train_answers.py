"""The engine "eager" of `mobizo train` where answers are free text."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mobizo_kernels.cli.answers import load_answers
from mobizo_kernels.cli.interrupts import StopRequest
from mobizo_kernels.cli.memory import reset_peak_rss
from mobizo_kernels.cli.objectives import text_objective, text_reward
from mobizo_kernels.cli.results import ADAPTER_DIRECTORY, write_results
from mobizo_kernels.cli.settings import TrainSettings, estimator, update_rule
from mobizo_kernels.cli.targets import lora_config
from mobizo_kernels.cli.tuning import open_journal, state_store, step_batches, tune
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.lora import save_adapter, wrap
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models import quantize_base
from mobizo_kernels.training import HeldOut, score_answers
from mobizo_kernels.training.objectives import RewardError
from mobizo_kernels.zo import ZerothOrder


def train_answers(settings: TrainSettings, stop: StopRequest) -> dict[str, Any]:
    """`train` on conversations. Returns and raises what `train` does."""
    if settings.start == "readout":
        raise InputError("start: expected zero where answers are free, got readout")
    reward = text_reward(settings)
    task = load_answers(settings)
    with blame_input("quantization"):
        quantize_base(task.model, settings.quantization)
    splits = task.splits
    examples = task.encode(splits.train[: settings.train_rows])
    validation = task.encode(splits.validation[: settings.validation_rows])
    test = task.encode(splits.test[: settings.eval_rows])
    batches = step_batches(examples, settings)
    config = lora_config(settings, task.model, task.encoder)
    with blame_input("settings"):
        wrap(task.model, config, seed=settings.seed)
        zo = ZerothOrder(
            task.model,
            estimator=estimator(settings),
            optimizer=update_rule(settings),
            run_seed=settings.seed,
            distribution=settings.distribution,
            store=state_store(settings, settings.steps * settings.step_rows > len(examples)),
        )
        evaluation = LabelledLoss(task.model, store=state_store(settings, True))
        # Of rows that are scored twice: they would take the room of those that come round again.
        scoring = LabelledLoss(task.model)

        objective = text_objective(settings, task, reward)

    def validate() -> HeldOut:
        if objective is not None:
            return objective.score(validation)
        return score_answers(evaluation, validation, task.pad_token)

    def save(directory: Path) -> None:
        save_adapter(task.model, directory / ADAPTER_DIRECTORY)

    reset_peak_rss()  # loading is over: from here on it is the memory of tuning
    recorded = open_journal(zo, examples, settings)
    with zo.journal or nullcontext():
        found = task.outcome(scoring, test)
        before = {f"{name}_before": value for name, value in found.quality.items()}
        try:
            run = tune(zo, batches, validate, recorded, task.pad_token, settings, stop, objective)
        except RewardError as error:
            raise InputError(f"objective: {error}") from error
    after = None if run.interrupted else task.outcome(scoring, test)
    return write_results(settings, before, after, run, save)
