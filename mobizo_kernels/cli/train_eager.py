"""The engine "eager" of `mobizo train`: torch, with the ops of this package."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mobizo_kernels.cli.evaluate import load_task, tuning_rows
from mobizo_kernels.cli.interrupts import StopRequest
from mobizo_kernels.cli.memory import reset_peak_rss
from mobizo_kernels.cli.objectives import label_objective
from mobizo_kernels.cli.quality import outcome, quality_before
from mobizo_kernels.cli.results import ADAPTER_DIRECTORY, write_results
from mobizo_kernels.cli.settings import TrainSettings, estimator, update_rule
from mobizo_kernels.cli.start import begin
from mobizo_kernels.cli.targets import lora_config
from mobizo_kernels.cli.train_answers import train_answers
from mobizo_kernels.cli.tuning import open_journal, state_store, step_batches, tune
from mobizo_kernels.data import EncodedExample
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.lora import save_adapter, wrap
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models import quantize_base
from mobizo_kernels.training import Scored, score_rows
from mobizo_kernels.zo import ZerothOrder


def train_eager(settings: TrainSettings, stop: StopRequest) -> dict[str, Any]:
    """`train` with the model in torch. Returns and raises what `train` does."""
    if settings.free_answers:
        return train_answers(settings, stop)
    if settings.journal is not None and settings.journal.exists() and not settings.resume:
        raise InputError(f"journal: {str(settings.journal)!r} exists; name another, or add --resume")
    task = load_task(settings)
    with blame_input("quantization"):
        quantize_base(task.model, settings.quantization)
    rows = tuning_rows(task.splits, settings)
    examples, validation, test = map(task.encode, (rows.train, rows.validation, rows.test))
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
            candidate_tokens=task.encoder.candidate_tokens,
            store=state_store(settings, settings.steps * settings.step_rows > len(examples)),
        )
        evaluation = LabelledLoss(
            task.model,
            candidate_tokens=task.encoder.candidate_tokens,
            store=state_store(settings, len(validation) > 0),
        )
        # Of rows that are scored twice at most: they would take the room of those that come round again.
        scoring = LabelledLoss(task.model, candidate_tokens=task.encoder.candidate_tokens)

    objective = label_objective(settings, zo.loss)

    def scored(rows: list[EncodedExample]) -> Scored:
        return score_rows(scoring, rows, task.pad_token)

    def validate() -> Scored:
        return score_rows(evaluation, validation, task.pad_token)

    def save(directory: Path) -> None:
        save_adapter(task.model, directory / ADAPTER_DIRECTORY)

    reset_peak_rss()  # loading is over: from here on it is the memory of tuning
    # The header has the start in it, so a journal is opened behind that.
    before = quality_before(scored(test), scored(examples[: settings.eval_rows]))
    start = begin(settings, scoring, evaluation, examples, validation, task.pad_token, lambda: scored(test))
    recorded = open_journal(zo, examples, settings)
    with zo.journal or nullcontext():
        run = tune(zo, batches, validate, recorded, task.pad_token, settings, stop, objective)
    after = None if run.interrupted else outcome(scored(test))
    return write_results(settings, before, after, run, save, **start)
