"""The engine "eager" of `mobizo train`: torch, with the ops of this package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.optim import lr_scheduler
from tqdm import tqdm

from mobizo_kernels.cli.evaluate import label_scores, label_targets, load_task, tuning_rows
from mobizo_kernels.cli.memory import reset_peak_rss
from mobizo_kernels.cli.results import (
    ADAPTER_DIRECTORY,
    Curve,
    Scored,
    finite_or_none,
    quality_before,
    write_results,
)
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.targets import lora_config
from mobizo_kernels.data import EncodedExample, collate, examples_fingerprint, training_batches
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.journal import JournalLost
from mobizo_kernels.lora import adapter_layers, save_adapter, wrap
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.models import quantize_base
from mobizo_kernels.optim import Records
from mobizo_kernels.training import Selection, metrics
from mobizo_kernels.zo import StepOutput, ZerothOrder


def train_eager(settings: TrainSettings) -> dict[str, Any]:
    """`train` with the model in torch. Returns and raises what `train` does."""
    if settings.program is not None:
        raise InputError("program: expected --engine executorch with it")
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
            queries=settings.queries,
            eps=settings.eps,
            lr=settings.lr,
            run_seed=settings.seed,
            estimator=settings.estimator,
            distribution=settings.distribution,
            normalize=settings.normalize,
            optimizer=settings.optimizer,
            momentum=settings.momentum,
            betas=(settings.beta1, settings.beta2),
            adam_eps=settings.adam_eps,
            weight_decay=settings.weight_decay,
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
    recorded = open_journal(zo, examples, settings)

    def scored(rows: list[EncodedExample]) -> Scored:
        return Scored(label_scores(scoring, rows, task.pad_token), label_targets(rows))

    def save(directory: Path) -> None:
        save_adapter(task.model, directory / ADAPTER_DIRECTORY)

    reset_peak_rss()  # loading is over: from here on it is the memory of tuning
    with zo.journal or nullcontext():
        before = quality_before(scored(test), scored(examples[: settings.eval_rows]))
        curve = tune(zo, evaluation, batches, validation, task.pad_token, settings, recorded)
    return write_results(settings, before, scored(test), curve, save)


def state_store(settings: TrainSettings, again: bool) -> StateStore | None:
    """Where states are kept of rows that come round again; None if they do not, or there are none."""
    return StateStore(settings.state_memory * 2**20) if settings.tail and again else None


def tune(
    zo: ZerothOrder,
    evaluation: LabelledLoss,
    batches: Iterator[list[EncodedExample]],
    validation: list[EncodedExample],
    pad_token: int,
    settings: TrainSettings,
    recorded: Records,
) -> Curve:
    """Make `settings.steps` steps and leave the model with the adapter that :class:`Selection` keeps.

    The steps `recorded` in a journal come first and are repeated without a forward; validations are made
    again, so that the adapter is that of a run in one go. A loss that runs away ends the run.
    """
    scheduler = learning_rate_schedule(zo.optimizer, settings, first=len(recorded))
    every = settings.eval_every or math.ceil(settings.steps / 10)
    layers = adapter_layers(zo.model)
    targets = label_targets(validation)
    curve, selection, best = Curve(), Selection(), dict[str, torch.Tensor]()

    def validate(step: int) -> bool:
        """Whether that shows an unsteady run."""
        nonlocal best
        scores = label_scores(evaluation, validation, pad_token)
        losses = metrics.row_losses(scores, targets)
        loss = float(losses.mean())
        curve.validation.append(
            {
                "step": step,
                "loss": finite_or_none(loss),
                "balanced_accuracy": metrics.balanced_accuracy(scores, targets),
            }
        )
        if selection.keep(losses):
            curve.best_step = step
            best = {name: layer.lora_b.clone() for name, layer in layers.items()}
        return zo.steadiness.validate(loss)

    validate(0)
    with tqdm(total=settings.steps, unit="step", desc="tuning") as progress:
        for step, rows in enumerate(itertools.islice(batches, settings.steps)):
            if step < len(recorded):
                unsteady = zo.redo(recorded[step : step + 1])
                curve.losses.append(finite_or_none(recorded.losses[step].item()))
            else:
                started = perf_counter()
                try:
                    output = take_step(zo, collate(rows, pad_token))
                except JournalLost as error:  # nothing else has what was learned: the run ends here
                    curve.lost = str(error)
                    if curve.validation[-1]["step"] != step:
                        validate(step)
                    break
                seconds = perf_counter() - started
                scheduler.step()
                unsteady = output.unsteady
                curve.losses.append(finite_or_none(output.loss))
                curve.step_ms.append(1e3 * seconds)
                progress.set_postfix(
                    {
                        "loss": f"{output.loss:.3f}",
                        "examples/s": f"{settings.batch_size / seconds:.1f}",
                        "validation": f"{curve.validation[-1]['balanced_accuracy']:.1%}",
                    }
                )
            # A run that had ended here ends here again; one that was told to go on goes on.
            stoppable = settings.stop_unsteady and step + 1 >= len(recorded)
            if (step + 1) % every == 0 or step + 1 == settings.steps or (unsteady and stoppable):
                unsteady |= validate(step + 1)
            progress.update()
            if unsteady and stoppable:
                break
    if zo.journal is not None and not curve.lost:
        try:
            zo.journal.sync()
        except JournalLost as error:
            curve.lost = str(error)
    curve.stopped = len(curve.losses) < settings.steps
    with torch.no_grad():
        for name, b in best.items():
            layers[name].lora_b.copy_(b)
    curve.skipped_steps = zo.skipped_steps
    return curve


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


def take_step(zo: ZerothOrder, batch: dict[str, torch.Tensor]) -> StepOutput:
    """One step. Raises InputError if the journal cannot be written: what is in it can be resumed."""
    try:
        return zo.step(batch)
    except JournalLost:
        raise
    except OSError as error:
        raise InputError(f"journal: {error}; make room and go on with --resume") from error


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, first: int = 0
) -> lr_scheduler.LambdaLR:
    """Sets lr * factor(t) for steps t from `first`; linear and cosine reach 0 after `settings.steps` steps.

    The factor is a function of t alone, so that a resumed run goes on with exactly the same rates.
    """
    factors: dict[str, Callable[[float], float]] = {
        "constant": lambda done: 1.0,
        "linear": lambda done: 1.0 - done,
        "cosine": lambda done: (1.0 + math.cos(math.pi * done)) / 2,
    }
    factor = factors[settings.lr_schedule]
    return lr_scheduler.LambdaLR(optimizer, lambda step: factor((first + step) / settings.steps))
