"""What `mobizo train` does: score a model, tune it by forward passes, score it again, write the results."""

from __future__ import annotations

import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig
from torch.optim import lr_scheduler
from tqdm import tqdm
from transformers import PreTrainedModel

from mobizo_kernels.cli import metrics
from mobizo_kernels.cli.environment import environment
from mobizo_kernels.cli.evaluate import label_scores, label_targets, load_task, quality
from mobizo_kernels.cli.memory import peak_rss_mb, reset_peak_rss
from mobizo_kernels.cli.plot import plot_learning_curve
from mobizo_kernels.cli.settings import TrainSettings, as_json
from mobizo_kernels.data import EncodedExample, InputError, collate, examples_fingerprint, training_batches
from mobizo_kernels.data.errors import blame_input
from mobizo_kernels.lora import adapter_layers, save_adapter, wrap
from mobizo_kernels.zo import StepOutput, ZerothOrder

ADAPTER_DIRECTORY = "adapter"
METRICS_FILE = "metrics.json"
PLOT_FILE = "learning_curve.png"


@dataclass
class Curve:
    """What was seen on the way. A loss is None if it was not finite, or of a step repeated from a journal."""

    losses: list[float | None] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    validation: list[dict[str, float | None]] = field(default_factory=list)
    best_step: int = 0


def train(settings: TrainSettings) -> dict[str, Any]:
    """Tune a model as `settings` say and write the adapter, the metrics and the plot to `settings.out`.

    The adapter that is kept is that of the step with the lowest validation loss, the untuned one included.
    Test rows decide nothing: they are scored before the first step and after the last.

    Returns:
        The summary, which is also in metrics.json: quality before and after, the cost of a step, and the
        settings.

    Raises:
        InputError: something the user gave does not exist or does not fit; nothing has been written then.
    """
    if settings.resume and settings.journal is None:
        raise InputError("resume: expected --journal FILE with it, the record of the run to go on with")
    # A run that was cut off may have left a part of its results.
    check_output(settings.out, settings.overwrite or settings.resume)
    task = load_task(settings)
    examples = task.encoder.encode(task.splits.train)
    validation = task.encoder.encode(task.splits.validation[: settings.validation_rows])
    test = task.encoder.encode(task.splits.test[: settings.eval_rows])
    batches = training_batches(examples, settings.batch_size, settings.seed)
    config = lora_config(settings, task.model)
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
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            candidate_tokens=task.encoder.candidate_tokens,
        )
    recorded = open_journal(zo, examples, settings)

    reset_peak_rss()  # loading is over: from here on it is the memory of tuning
    targets = label_targets(test)
    scores = label_scores(zo.loss, test, task.pad_token)
    before = quality(scores, targets)
    known = examples[: settings.eval_rows]
    bias = metrics.fit_bias(label_scores(zo.loss, known, task.pad_token), label_targets(known))
    with zo.journal or nullcontext():
        curve = tune(zo, batches, validation, task.pad_token, settings, recorded)
    after = quality(label_scores(zo.loss, test, task.pad_token), targets)

    summary = {
        "accuracy_before": before["accuracy"],
        "balanced_accuracy_before": before["balanced_accuracy"],
        "calibrated_accuracy_before": metrics.accuracy(scores + bias, targets),
        "auc_before": before["auc"],
        "accuracy_after": after["accuracy"],
        "balanced_accuracy_after": after["balanced_accuracy"],
        "auc_after": after["auc"],
        "eval_rows": len(test),
        "steps": zo.steps,
        "skipped_steps": zo.skipped_steps,
        "best_step": curve.best_step,
        "step_ms_median": round(median(curve.step_ms), 2) if curve.step_ms else None,
        "peak_rss_mb": round(peak_rss_mb(), 1),
    }
    return write_results(settings, task.model, summary, curve)


def tune(
    zo: ZerothOrder,
    batches: Iterator[list[EncodedExample]],
    validation: list[EncodedExample],
    pad_token: int,
    settings: TrainSettings,
    recorded: torch.Tensor,
) -> Curve:
    """Make `settings.steps` steps and leave the model with the adapter that validated best.

    The steps `recorded` in a journal, float32 [n, q], come first and are repeated without a forward;
    validations are made again, so that the adapter is that of a run in one go.
    """
    scheduler = learning_rate_schedule(zo.optimizer, settings, first=len(recorded))
    every = settings.eval_every or math.ceil(settings.steps / 10)
    layers = adapter_layers(zo.model)
    targets = label_targets(validation)
    curve, lowest, best = Curve(), math.inf, {}

    def validate(step: int) -> None:
        nonlocal lowest, best
        scores = label_scores(zo.loss, validation, pad_token)
        loss = metrics.cross_entropy(scores, targets)
        curve.validation.append(
            {
                "step": step,
                "loss": _finite(loss),
                "balanced_accuracy": metrics.balanced_accuracy(scores, targets),
            }
        )
        if loss < lowest:
            lowest, curve.best_step = loss, step
            best = {name: layer.lora_b.clone() for name, layer in layers.items()}

    validate(0)
    with tqdm(total=settings.steps, unit="step", desc="tuning") as progress:
        for step, rows in enumerate(itertools.islice(batches, settings.steps)):
            if step < len(recorded):
                zo.redo(recorded[step : step + 1])
                curve.losses.append(None)
            else:
                started = perf_counter()
                output = take_step(zo, collate(rows, pad_token))
                seconds = perf_counter() - started
                scheduler.step()
                curve.losses.append(_finite(output.loss))
                curve.step_ms.append(1e3 * seconds)
                progress.set_postfix(
                    {
                        "loss": f"{output.loss:.3f}",
                        "examples/s": f"{settings.batch_size / seconds:.1f}",
                        "validation": f"{curve.validation[-1]['balanced_accuracy']:.1%}",
                    }
                )
            if (step + 1) % every == 0 or step + 1 == settings.steps:
                validate(step + 1)
            progress.update()
    with torch.no_grad():
        for name, b in best.items():
            layers[name].lora_b.copy_(b)
    return curve


def open_journal(zo: ZerothOrder, examples: list[EncodedExample], settings: TrainSettings) -> torch.Tensor:
    """Record the run in `settings.journal`, if that is given; the steps in it so far, float32 [n, q].

    Raises:
        InputError: the journal is there without `settings.resume`, is that of another run, or cannot be
            written.
    """
    if settings.journal is None:
        return torch.empty(0, settings.queries)
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
    except OSError as error:
        raise InputError(f"journal: {error}; make room and go on with --resume") from error


def lora_config(settings: TrainSettings, model: PreTrainedModel) -> LoraConfig:
    """PEFT's configuration of the adapter `settings` ask for. Raises InputError as `layer_range` does."""
    names = [name.strip() for name in settings.targets.split(",")]
    layers = model.config.get_text_config().num_hidden_layers
    return LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank if settings.alpha is None else settings.alpha,  # type: ignore[arg-type]
        target_modules="all-linear" if names == ["all-linear"] else names,
        layers_to_transform=layer_range(settings.layers, layers),
        task_type="CAUSAL_LM",
    )


def layer_range(text: str, layers: int) -> list[int]:
    """The layers meant by "FIRST:LAST" (from 0, both included), "top-N" or "top-N%" (one at least), of a
    model that has `layers` of them.

    Raises:
        InputError: none of these forms, or beyond the model.
    """
    try:
        if text.startswith("top-"):
            number = text.removeprefix("top-")
            share = number.endswith("%")
            count = max(1, round(layers * int(number[:-1]) / 100)) if share else int(number)
            first, last = layers - count, layers - 1
        else:
            first, last = map(int, text.split(":"))
    except ValueError:
        raise InputError(f"layers: expected FIRST:LAST, top-N or top-N%, got {text!r}") from None
    if not 0 <= first <= last < layers:
        raise InputError(f"layers: expected layers of the model, within 0:{layers - 1}, got {text!r}")
    return list(range(first, last + 1))


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


def check_output(directory: Path, overwrite: bool) -> None:
    """Raise InputError unless results may go to `directory`: it is new, or empty, or may be overwritten."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"out: expected a directory, got the file {str(directory)!r}")
    if directory.is_dir() and any(directory.iterdir()) and not overwrite:
        raise InputError(f"out: {str(directory)!r} is not empty; name another directory, or add --overwrite")
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise InputError(f"out: {str(existing)!r} cannot be written to")


def write_results(
    settings: TrainSettings, model: PreTrainedModel, summary: dict[str, Any], curve: Curve
) -> dict[str, Any]:
    """Write all files beside their places and move them there at the end; other files are left alone."""
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as name:
        scratch = Path(name)
        save_adapter(model, scratch / ADAPTER_DIRECTORY)
        weights = scratch / ADAPTER_DIRECTORY / "adapter_model.safetensors"
        summary = {**summary, "adapter_bytes": weights.stat().st_size, "settings": as_json(settings)}
        record = {
            **summary,
            "losses": curve.losses,
            "validation": curve.validation,
            "environment": environment(),
        }
        (scratch / METRICS_FILE).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        plot_learning_curve(scratch / PLOT_FILE, curve.losses, curve.validation, curve.best_step)
        (out / ADAPTER_DIRECTORY).mkdir(exist_ok=True)
        for path in filter(Path.is_file, sorted(scratch.rglob("*"))):
            os.replace(path, out / path.relative_to(scratch))
    return summary


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
