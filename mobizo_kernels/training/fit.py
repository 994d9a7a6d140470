"""A run in torch: steps, validations, the parameters that are kept, and when to stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from time import perf_counter
from typing import Any, cast

import torch
from torch.optim.lr_scheduler import LRScheduler

from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.journal import JournalLost
from mobizo_kernels.journal.header import PathLike
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.optim import Records
from mobizo_kernels.run_defaults import RUN
from mobizo_kernels.training.answers import score_answers
from mobizo_kernels.training.divergence import DivergenceGuard
from mobizo_kernels.training.reports import FitResult, HeldOut, StepReport, Validation
from mobizo_kernels.training.schedule import check_schedule, learning_rate_schedule
from mobizo_kernels.training.scoring import score_rows
from mobizo_kernels.training.selection import Keeper
from mobizo_kernels.zo import Objective, Shaping, ZerothOrder

Rows = Mapping[str, torch.Tensor] | Sequence[EncodedExample]
Batch = Rows | Sequence[Rows]
"""What a step is made of: tensors or rows, or several of either, which make one estimate."""

_log = logging.getLogger(__name__)


def fit(
    zo: ZerothOrder,
    batches: Iterable[Batch],
    *,
    steps: int,
    lr_schedule: str = RUN.lr_schedule,
    validation: Sequence[EncodedExample] | Callable[[], HeldOut] | None = None,
    eval_every: int | None = None,
    keep: str = RUN.keep,
    stop_unsteady: bool = RUN.stop_unsteady,
    journal: PathLike | None = None,
    resume: bool = RUN.resume,
    data: str | None = None,
    objective: Objective | None = None,
    shaping: Shaping = "none",
    recorded: Records | None = None,
    pad_token: int = 0,
    stop: Callable[[], bool] | None = None,
    on_step: Callable[[StepReport], object] | None = None,
    on_validation: Callable[[Validation], object] | None = None,
) -> FitResult:
    """Make steps until there are `steps`, and leave the model with the parameters that are kept.

    Ranks of a process group all call it, each with its own batches if rows are split. Rank 0 alone writes the
    journal and scores validation rows; what follows from either is the same on all.

    Steps that a journal has come first and are applied without a forward. Their validations are made again,
    so the outcome is that of a run in one go, to the bit. A loss that runs away ends the run.

    Args:
        zo: makes the steps. It may have made some: the run then goes on behind them.
        batches: one for each step that is yet to be made or applied: what :meth:`ZerothOrder.step` takes, or
            rows, as :func:`mobizo_kernels.data.training_batches` gives them, or a list of several batches of
            rows, which make one estimate. They are gone through again and
            again, if they can be. A run that resumes has to get the batches of its beginning.
        steps: of the run in all, those that were made or recorded included; the schedule spans them.
        lr_schedule: "constant", "linear" or "cosine"; the last two fall to 0. The rate that it begins with
            is that of the optimizer.
        validation: rows, or a function that scores rows of its own, always the same ones. Rows with
            labels want `candidate_tokens` of :class:`ZerothOrder`: the words of the labels, in their order.
            Those without, of label -1, are scored by the tokens of their answers.
        eval_every: steps between validations, a tenth of `steps` by default. The parameters of before the
            first step are validated, too, and so are those behind the last.
        keep: "best" for the latest parameters that do not validate significantly worse than the best (see
            :class:`Selection`), or for the best themselves where the loss ran away. Copies of both are held.
            Or "last", which it is without a validation.
        stop_unsteady: end the run when its loss runs away, see :class:`DivergenceGuard`.
        journal: file that gets a record of each step. It is closed at the end.
        resume: go on with `journal` if there is one, from the parameters with which it began.
        data: a hash of the training rows for the journal, which then goes on with no others, such as that of
            :func:`mobizo_kernels.data.examples_fingerprint`.
        objective: what the steps minimise in place of the cross-entropy, see :meth:`ZerothOrder.step`, like
            the next. A journal does not know it: `data` is to tell runs of one from those of another.
        shaping: of the losses by which directions are weighed.
        recorded: what :meth:`ZerothOrder.open_journal` returned, if the caller has opened the journal.
        pad_token: fills up rows.
        stop: asked after each step whether the run shall end there. It then ends as behind its last step,
            with a validation, and a journal of it can be resumed.
        on_step: called after each step that is made, not after those applied from a journal.
        on_validation: called after each validation. What either raises ends the run; the parameters are then
            those of the last step.

    Raises:
        ValueError: before anything is changed or written, naming the argument, if one is out of range or does
            not fit the others, or the journal is damaged or that of another run; or in the middle of the run,
            if there are no more batches or one has nothing to predict.
        OSError: if the journal exists without `resume`, is held by another run, or cannot be written. What is
            in it can be resumed.
    """
    if steps <= zo.steps:
        raise ValueError(f"steps must be above the {zo.steps} that were made, got {steps}")
    check_schedule(lr_schedule)
    if keep not in ("best", "last"):
        raise ValueError(f"keep must be best or last, got {keep!r}")
    every = math.ceil(steps / 10) if eval_every is None else eval_every
    if every < 1:
        raise ValueError(f"eval_every must be at least 1, got {eval_every}")
    if resume and journal is None:
        raise ValueError("resume needs a journal")
    if recorded is not None and journal is not None:
        raise ValueError("recorded is of a journal that is open: journal must be left out")
    score = _row_scorer(zo, validation, pad_token) if isinstance(validation, Sequence) else validation
    header = {"lr_schedule": lr_schedule, "steps": steps, "data": data}
    with _journal(zo, journal, resume, header) as found:
        recorded = found if recorded is None else recorded
        if zo.steps + len(recorded) > steps:
            raise ValueError(f"recorded has {len(recorded)} steps, more than the {steps} of the run")
        return _Run(
            zo,
            _endless(batches),
            recorded,
            steps=steps,
            scheduler=learning_rate_schedule(zo.optimizer, lr_schedule, steps, zo.steps + len(recorded)),
            score=score,
            every=every,
            keeper=Keeper(zo.model) if keep == "best" and score is not None else None,
            stop_unsteady=stop_unsteady,
            objective=objective,
            shaping=shaping,
            pad_token=pad_token,
            stop=stop,
            on_step=on_step,
            on_validation=on_validation,
        ).make()


@dataclass
class _Run:
    """A run on its way. The attributes are what :func:`fit` is given and what has come of it."""

    zo: ZerothOrder
    batches: Iterator[Batch]
    recorded: Records
    _: KW_ONLY
    steps: int
    scheduler: LRScheduler
    score: Callable[[], HeldOut] | None
    every: int
    keeper: Keeper | None
    stop_unsteady: bool
    objective: Objective | None
    shaping: Shaping
    pad_token: int
    stop: Callable[[], bool] | None
    on_step: Callable[[StepReport], object] | None
    on_validation: Callable[[Validation], object] | None
    result: FitResult = field(default_factory=FitResult)
    guard: DivergenceGuard = field(default_factory=DivergenceGuard)
    warned: bool = False

    def make(self) -> FitResult:
        """All steps, and what follows the last of them."""
        zo, result, ran_away = self.zo, self.result, False
        self.validate()
        try:
            ran_away = self.go_on()
            zo.sync_journal()
            zo.check_ranks()
        except JournalLost as error:  # nothing else has what was learned: the run ends here
            result.lost = str(error)
        early = result.interrupted or result.lost
        if early and result.validations and result.validations[-1].step != zo.steps:
            ran_away |= self.validate() and self.stop_unsteady
        result.stopped = zo.steps < self.steps
        kept = self.keeper.restore(lowest=ran_away) if self.keeper is not None else None
        result.best_step = zo.steps if kept is None else result.validations[kept].step
        return result

    def go_on(self) -> bool:
        """The steps that are left, those of the journal first; whether they ended for the loss ran away."""
        zo, result, first = self.zo, self.result, self.zo.steps
        while zo.steps < self.steps:
            batch, done = next(self.batches), zo.steps - first
            if done < len(self.recorded):
                unsteady = self.apply(self.recorded[done : done + 1])
            else:
                unsteady = self.make_step(batch)
            # A run that had ended here ends here again; one that was told to go on goes on.
            stoppable = self.stop_unsteady and zo.steps - first >= len(self.recorded)
            if zo.steps % self.every == 0 or zo.steps == self.steps or (unsteady and stoppable):
                unsteady |= self.validate()
            if unsteady and stoppable:
                return True
            if self.stop is not None and self.stop():
                result.interrupted = True
                break
        return False

    def apply(self, record: Records) -> bool:
        """A step that the journal has; whether the loss has run away."""
        self.zo.apply(record)
        (step,) = record
        return self.observe(step.loss, step.applied)

    def make_step(self, batch: Batch) -> bool:
        """One step on a batch; whether the loss has run away."""
        lr, started = self.zo.optimizer.param_groups[0]["lr"], perf_counter()
        output = self.zo.step(
            tensors_of(batch, self.pad_token), objective=self.objective, shaping=self.shaping
        )
        seconds = perf_counter() - started
        self.scheduler.step()
        self.result.seconds.append(seconds)
        unsteady = self.observe(output.loss, not output.skipped)
        if unsteady and not self.warned:
            _log.warning("the loss runs away at step %d: %s", output.step, self.guard)
        self.warned |= unsteady
        if self.on_step is not None:
            self.on_step(StepReport(**vars(output), lr=lr, seconds=seconds, unsteady=unsteady))
        return unsteady

    def observe(self, loss: float, applied: bool) -> bool:
        """Take what came of a step; whether the loss has run away."""
        self.result.losses.append(loss)
        self.result.skipped_steps += not applied
        return self.guard.observe(loss, applied)

    def scored(self) -> tuple[Any, Validation]:
        """The losses of the validation rows and what is reported of them."""
        assert self.score is not None
        scored = self.score()
        losses = scored.losses
        found = Validation(self.zo.steps, float(losses.mean()), scored.accuracy, scored.balanced_accuracy)
        return losses, found

    def validate(self) -> bool:
        """Score the validation rows, if there are any; whether that shows a loss that has run away."""
        if self.score is None:
            return False
        losses, validation = self.zo.from_first(self.scored)
        self.result.validations.append(validation)
        if self.keeper is not None:
            self.keeper.offer(losses)
        if self.on_validation is not None:
            self.on_validation(validation)
        return self.guard.validate(validation.loss)


def _row_scorer(zo: ZerothOrder, rows: Sequence[EncodedExample], pad_token: int) -> Callable[[], HeldOut]:
    """What scores the rows by the labels' words, or by free answers. Raises ValueError if it cannot."""
    candidates = zo.loss.candidates
    if candidates is None and rows and all(row.label == -1 for row in rows):
        answers = LabelledLoss(zo.model, compile=zo.loss.compiles)
        return lambda: score_answers(answers, rows, pad_token)
    if candidates is None:
        raise ValueError("validation by rows needs candidate_tokens of ZerothOrder: the words of the labels")
    labels = {row.label for row in rows}
    if not labels or min(labels) < 0 or max(labels) >= len(candidates):
        found = sorted(labels)
        raise ValueError(f"validation needs rows with labels from 0 to {len(candidates) - 1}, got {found}")
    # Its own, without the store of the training rows: they would take each other's room.
    loss = LabelledLoss(zo.model, candidate_tokens=candidates.tolist(), compile=zo.loss.compiles)
    return lambda: score_rows(loss, rows, pad_token)


@contextmanager
def _journal(
    zo: ZerothOrder, path: PathLike | None, resume: bool, header: dict[str, Any]
) -> Iterator[Records]:
    """The steps in the journal at `path`, in which those of the block are recorded; none without a path."""
    if path is None:
        yield Records.none(zo.estimator.queries)
        return
    if zo.journal is not None:
        raise ValueError("journal must be left out where ZerothOrder has one already")
    recorded = zo.open_journal(path, resume=resume, **header)
    try:
        yield recorded
    finally:
        zo.close_journal()


def tensors_of(batch: Batch, pad_token: int) -> Mapping[str, torch.Tensor] | list[Mapping[str, torch.Tensor]]:
    """What a step takes, of rows or of tensors."""
    if isinstance(batch, Mapping):
        return batch
    if all(isinstance(part, EncodedExample) for part in batch):
        return collate(cast(Sequence[EncodedExample], batch), pad_token)
    parts = cast(Sequence[Rows], batch)
    return [part if isinstance(part, Mapping) else collate(part, pad_token) for part in parts]


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, again and again. Raises ValueError if there are no more."""
    taken, more = 0, True
    while more:
        more = False
        for batch in batches:
            taken, more = taken + 1, True
            yield batch
    raise ValueError(f"batches must be one for each step, got {taken}")
