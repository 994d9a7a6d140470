"""The engine "eager" of `mobizo train` where answers are free text."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from mobizo_kernels.cli.answers import load_answers
from mobizo_kernels.cli.dry_run import dry_run
from mobizo_kernels.cli.interrupts import StopRequest
from mobizo_kernels.cli.memory import reset_peak_rss
from mobizo_kernels.cli.objectives import text_objective, text_reward
from mobizo_kernels.cli.prepare import prepare
from mobizo_kernels.cli.results import write_results
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.tuning import open_journal, tune
from mobizo_kernels.data import ConversationSplits
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.training import HeldOut, score_answers
from mobizo_kernels.training.objectives import RewardError


def train_answers(settings: TrainSettings, stop: StopRequest) -> dict[str, Any]:
    """`train` on conversations. Returns and raises what `train` does."""
    if settings.start == "readout":
        raise InputError("start: expected zero where answers are free, got readout")
    reward = text_reward(settings)
    task = load_answers(settings)
    splits = task.splits
    rows = ConversationSplits(
        splits.train[: settings.train_rows],
        splits.validation[: settings.validation_rows],
        splits.test[: settings.eval_rows],
    )
    run = prepare(task, rows, None, settings)
    with blame_input("settings"):
        objective = text_objective(settings, task, reward)

    def validate() -> HeldOut:
        if objective is not None:
            return objective.score(run.validation)
        return score_answers(run.evaluation, run.validation, run.pad_token)

    if settings.dry_run:
        return dry_run(
            run, lambda rows: score_answers(run.scoring, rows, run.pad_token), objective, (), settings
        )
    reset_peak_rss()  # loading is over: from here on it is the memory of tuning
    recorded = open_journal(run.zo, run.examples, settings)
    with run.zo.journal or nullcontext():
        found = task.outcome(run.scoring, run.test)
        before = {f"{name}_before": value for name, value in found.quality.items()}
        try:
            made = tune(run.zo, run.batches, validate, recorded, run.pad_token, settings, stop, objective)
        except RewardError as error:
            raise InputError(f"objective: {error}") from error
    after = None if made.interrupted else stop.heeding(lambda: task.outcome(run.scoring, run.test))
    made.interrupted = after is None
    return write_results(settings, before, after, made, run.save)
