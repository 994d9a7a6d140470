"""A run in torch: steps, validations, the adapter that is kept, and when to stop."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from time import perf_counter

import torch
from tqdm import tqdm

from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.errors import InputError
from mobizo_kernels.journal import JournalLost
from mobizo_kernels.lora import adapter_layers
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.optim import Records
from mobizo_kernels.training import metrics
from mobizo_kernels.training.curve import Curve, finite_or_none
from mobizo_kernels.training.divergence import DivergenceGuard
from mobizo_kernels.training.schedule import learning_rate_schedule
from mobizo_kernels.training.scoring import label_scores, label_targets
from mobizo_kernels.training.selection import Selection
from mobizo_kernels.zo import StepOutput, ZerothOrder

_log = logging.getLogger(__name__)


def tune(
    zo: ZerothOrder,
    evaluation: LabelledLoss,
    batches: Iterator[list[EncodedExample]],
    validation: list[EncodedExample],
    pad_token: int,
    recorded: Records,
    *,
    steps: int,
    lr_schedule: str = "linear",
    eval_every: int | None = None,
    stop_unsteady: bool = True,
) -> Curve:
    """Make `steps` steps and leave the model with the adapter that :class:`Selection` keeps.

    The steps `recorded` in a journal come first and are applied without a forward; validations are made
    again, so that the adapter is that of a run in one go.

    Args:
        zo: of a wrapped model, before its first step.
        evaluation: the loss of the same model, for validations.
        batches: rows of each step, those of the `recorded` ones included.
        validation: rows, always all of them.
        pad_token: fills rows up.
        recorded: as :meth:`ZerothOrder.open_journal` returns them.
        steps: of the whole run.
        lr_schedule: see :func:`learning_rate_schedule`.
        eval_every: steps between validations, a tenth of `steps` by default.
        stop_unsteady: end the run when its loss runs away, see :class:`DivergenceGuard`.

    Raises:
        InputError: the journal cannot be written; what is in it can be resumed.
    """
    scheduler = learning_rate_schedule(zo.optimizer, lr_schedule, steps, first=len(recorded))
    every = eval_every or math.ceil(steps / 10)
    layers = adapter_layers(zo.model)
    targets = label_targets(validation)
    curve, selection, best = Curve(), Selection(), dict[str, torch.Tensor]()
    guard, warned = DivergenceGuard(), False

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
        return guard.validate(loss)

    validate(0)
    with tqdm(total=steps, unit="step", desc="tuning") as progress:
        for step, rows in enumerate(itertools.islice(batches, steps)):
            if step < len(recorded):
                zo.apply(recorded[step : step + 1])
                loss = recorded.losses[step].item()
                unsteady = guard.observe(loss, bool(recorded.applied[step]))
                curve.losses.append(finite_or_none(loss))
            else:
                started = perf_counter()
                try:
                    output = _take_step(zo, collate(rows, pad_token))
                except JournalLost as error:  # nothing else has what was learned: the run ends here
                    curve.lost = str(error)
                    if curve.validation[-1]["step"] != step:
                        validate(step)
                    break
                seconds = perf_counter() - started
                scheduler.step()
                unsteady = guard.observe(output.loss, not output.skipped)
                if unsteady and not warned:
                    _log.warning("the loss runs away at step %d: %s", step, guard)
                warned |= unsteady
                curve.losses.append(finite_or_none(output.loss))
                curve.step_ms.append(1e3 * seconds)
                progress.set_postfix(
                    {
                        "loss": f"{output.loss:.3f}",
                        "examples/s": f"{len(rows) / seconds:.1f}",
                        "validation": f"{curve.validation[-1]['balanced_accuracy']:.1%}",
                    }
                )
            # A run that had ended here ends here again; one that was told to go on goes on.
            stoppable = stop_unsteady and step + 1 >= len(recorded)
            if (step + 1) % every == 0 or step + 1 == steps or (unsteady and stoppable):
                unsteady |= validate(step + 1)
            progress.update()
            if unsteady and stoppable:
                break
    if zo.journal is not None and not curve.lost:
        try:
            zo.journal.sync()
        except JournalLost as error:
            curve.lost = str(error)
    curve.stopped = len(curve.losses) < steps
    with torch.no_grad():
        for name, b in best.items():
            layers[name].lora_b.copy_(b)
    curve.skipped_steps = zo.skipped_steps
    return curve


def _take_step(zo: ZerothOrder, batch: dict[str, torch.Tensor]) -> StepOutput:
    """One step. Raises InputError if the journal cannot be written: what is in it can be resumed."""
    try:
        return zo.step(batch)
    except JournalLost:
        raise
    except OSError as error:
        raise InputError(f"journal: {error}; make room and go on with --resume") from error
