"""The engine "eager" of `mobizo train`: torch, with the ops of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mobizo_kernels.cli.evaluate import load_task, tuning_rows
from mobizo_kernels.cli.memory import reset_peak_rss
from mobizo_kernels.cli.progress import TuningBar
from mobizo_kernels.cli.quality import quality_before
from mobizo_kernels.cli.results import ADAPTER_DIRECTORY, write_results
from mobizo_kernels.cli.settings import TrainSettings, estimator, update_rule
from mobizo_kernels.cli.start import begin
from mobizo_kernels.cli.targets import lora_config
from mobizo_kernels.data import EncodedExample, examples_fingerprint, training_batches
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.lora import save_adapter, wrap
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.models import quantize_base
from mobizo_kernels.optim import Records
from mobizo_kernels.training import FitResult, Scored, Validation, fit, score_rows
from mobizo_kernels.zo import ZerothOrder


def train_eager(settings: TrainSettings) -> dict[str, Any]:
    """`train` with the model in torch. Returns and raises what `train` does."""
    if settings.program is not None:
        raise InputError("program: expected --engine executorch with it")
    if settings.lowering != "custom-op":
        raise InputError(f"lowering: {settings.lowering} is for --engine executorch")
    reads_out = settings.start == "readout"
    if reads_out and settings.journal is not None and settings.journal.exists() and not settings.resume:
        raise InputError(f"journal: {str(settings.journal)!r} exists; name another, or add --resume")
    task = load_task(settings)
    with blame_input("quantization"):
        quantize_base(task.model, settings.quantization)
    rows = tuning_rows(task.splits, settings)
    examples, validation, test = map(task.encode, (rows.train, rows.validation, rows.test))
    batches = training_batches(examples, settings.batch_size, settings.seed)
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
            store=state_store(settings, settings.steps * settings.batch_size > len(examples)),
        )
        evaluation = LabelledLoss(
            task.model,
            candidate_tokens=task.encoder.candidate_tokens,
            store=state_store(settings, len(validation) > 0),
        )
        # Of rows that are scored twice at most: they would take the room of those that come round again.
        scoring = LabelledLoss(task.model, candidate_tokens=task.encoder.candidate_tokens)

    def scored(rows: list[EncodedExample]) -> Scored:
        return score_rows(scoring, rows, task.pad_token)

    def validate() -> Scored:
        return score_rows(evaluation, validation, task.pad_token)

    def save(directory: Path) -> None:
        save_adapter(task.model, directory / ADAPTER_DIRECTORY)

    reset_peak_rss()  # loading is over: from here on it is the memory of tuning
    # The header has the start in it, so a journal is opened behind that.
    before = quality_before(scored(test), scored(examples[: settings.eval_rows])) if reads_out else {}
    start = begin(settings, scoring, evaluation, examples, validation, task.pad_token, lambda: scored(test))
    recorded = open_journal(zo, examples, settings)
    with zo.journal or nullcontext():
        before = before or quality_before(scored(test), scored(examples[: settings.eval_rows]))
        run = tune(zo, batches, validate, recorded, task.pad_token, settings)
    return write_results(settings, before, scored(test), run, save, **start)


def state_store(settings: TrainSettings, again: bool) -> StateStore | None:
    """Where states are kept of rows that come round again; None if they do not, or there are none."""
    return StateStore(settings.state_memory * 2**20) if settings.tail and again else None


def tune(
    zo: ZerothOrder,
    batches: Iterator[list[EncodedExample]],
    validate: Callable[[], Scored],
    recorded: Records,
    pad_token: int,
    settings: TrainSettings,
) -> FitResult:
    """`fit` as `settings` ask for, with a bar that shows how far it is.

    Raises:
        InputError: the journal cannot be written; what is in it can be resumed.
    """
    with TuningBar(settings.steps, settings.batch_size) as bar:

        def on_validation(validation: Validation) -> None:
            assert validation.balanced_accuracy is not None  # `tuning_rows` are of every label
            bar.show_validation(validation.balanced_accuracy)

        try:
            run = fit(
                zo,
                batches,
                steps=settings.steps,
                lr_schedule=settings.lr_schedule,
                validation=validate,
                eval_every=settings.eval_every,
                stop_unsteady=settings.stop_unsteady,
                recorded=recorded,
                pad_token=pad_token,
                on_step=lambda report: bar.show_step(report.step, report.loss, report.seconds),
                on_validation=on_validation,
            )
        except OSError as error:
            if error.filename != str(settings.journal):
                raise
            raise InputError(f"journal: {error}; make room and go on with --resume") from error
        bar.reach(len(run.losses))
    return run


def open_journal(zo: ZerothOrder, examples: list[EncodedExample], settings: TrainSettings) -> Records:
    """Record the run in `settings.journal`, if that is given; the steps in it so far.

    Raises:
        InputError: the journal is there without `settings.resume`, is that of another run, or cannot be
            written.
    """
    if settings.journal is None:
        return Records.none(settings.queries)
    with blame_input("journal"):
        return zo.open_journal(
            settings.journal,
            resume=settings.resume,
            lr_schedule=settings.lr_schedule,
            steps=settings.steps,
            batch_size=settings.batch_size,
            data=examples_fingerprint(examples),
        )
