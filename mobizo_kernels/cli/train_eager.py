"""The engine "eager" of `mobizo train`: torch, with the ops of this package."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from mobizo_kernels.cli.dry_run import dry_run
from mobizo_kernels.cli.evaluate import load_task, tuning_rows
from mobizo_kernels.cli.interrupts import StopRequest
from mobizo_kernels.cli.memory import reset_peak_rss
from mobizo_kernels.cli.objectives import label_objective
from mobizo_kernels.cli.prepare import prepare
from mobizo_kernels.cli.quality import outcome, quality_before
from mobizo_kernels.cli.results import write_results
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.start import begin
from mobizo_kernels.cli.train_answers import train_answers
from mobizo_kernels.cli.tuning import open_journal, tune
from mobizo_kernels.data import EncodedExample
from mobizo_kernels.training import Scored, score_rows


def train_eager(settings: TrainSettings, stop: StopRequest) -> dict[str, Any]:
    """`train` with the model in torch. Returns and raises what `train` does."""
    if settings.free_answers:
        return train_answers(settings, stop)
    task = load_task(settings)
    rows = tuning_rows(task.splits, settings)
    run = prepare(task, rows, task.encoder.candidate_tokens, settings)
    objective = label_objective(settings, run.zo.loss)

    def scored(rows: list[EncodedExample]) -> Scored:
        return score_rows(run.scoring, rows, run.pad_token)

    def validate() -> Scored:
        return score_rows(run.evaluation, run.validation, run.pad_token)

    if settings.dry_run:
        return dry_run(run, scored, objective, task.encoder.labels, settings)
    reset_peak_rss()  # loading is over: from here on it is the memory of tuning
    # The header has the start in it, so a journal is opened behind that.
    before = quality_before(scored(run.test), scored(run.examples[: settings.eval_rows]))
    start = begin(
        settings,
        run.scoring,
        run.evaluation,
        run.examples,
        run.validation,
        run.pad_token,
        lambda: scored(run.test),
    )
    recorded = open_journal(run.zo, run.examples, settings)
    with run.zo.journal or nullcontext():
        start.keep()
        made = tune(run.zo, run.batches, validate, recorded, run.pad_token, settings, stop, objective)
    after = None if made.interrupted else stop.heeding(lambda: outcome(scored(run.test)))
    made.interrupted = after is None
    return write_results(settings, before, after, made, run.save, **start.summary)
