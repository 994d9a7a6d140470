"""What all runs of the engine "eager" have in common: the loop with its bar, the journal, the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mobizo_kernels.cli.interrupts import StopRequest
from mobizo_kernels.cli.objectives import objective_name
from mobizo_kernels.cli.progress import TuningBar
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.tensorboard import Scalars
from mobizo_kernels.data import EncodedExample, examples_fingerprint, training_batches
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.optim import Records
from mobizo_kernels.training import FitResult, HeldOut, StepReport, Validation, fit
from mobizo_kernels.training.fit import Batch
from mobizo_kernels.zo import Objective, ZerothOrder


def state_store(settings: TrainSettings, again: bool) -> StateStore | None:
    """Where states are kept of rows that come round again; None if they do not, or there are none."""
    return StateStore(settings.state_memory * 2**20) if settings.tail and again else None


def step_batches(examples: Sequence[EncodedExample], settings: TrainSettings) -> Iterator[Batch]:
    """What each step is made of: a batch, or several with `settings.accumulate`.

    Raises:
        InputError: a batch holds more rows than there are.
    """
    batches = training_batches(examples, settings.batch_size, settings.seed)
    return batches if settings.accumulate == 1 else map(list, zip(*[batches] * settings.accumulate))  # noqa: B905


def tune(
    zo: ZerothOrder,
    batches: Iterator[Batch],
    validate: Callable[[], HeldOut],
    recorded: Records,
    pad_token: int,
    settings: TrainSettings,
    stop: StopRequest,
    objective: Objective | None = None,
) -> FitResult:
    """`fit` as `settings` ask for, with a bar that shows how far it is.

    Raises:
        InputError: the journal cannot be written; what is in it can be resumed.
    """
    with (
        TuningBar(settings.steps, settings.step_rows) as bar,
        Scalars(settings.tensorboard) as board,
        stop.armed(),
    ):

        def on_validation(validation: Validation) -> None:
            accuracy = validation.balanced_accuracy  # `tuning_rows` are of every label, if there are labels
            board.validation(validation.step, validation.loss, validation.accuracy, accuracy)
            bar.show_validation(f"{validation.loss:.3f}" if accuracy is None else f"{accuracy:.1%}")

        def on_step(report: StepReport) -> None:
            board.step(report.step + 1, report.loss, report.lr, report.seconds)
            bar.show_step(report.step, report.loss, report.seconds)

        try:
            run = fit(
                zo,
                batches,
                steps=settings.steps,
                lr_schedule=settings.lr_schedule,
                validation=validate,
                eval_every=settings.eval_every,
                stop_unsteady=settings.stop_unsteady,
                objective=objective,
                shaping=settings.reward_shaping,
                recorded=recorded,
                pad_token=pad_token,
                stop=stop,
                on_step=on_step,
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
            batch_size=settings.step_rows,
            data=_data(examples, settings),
        )


def _data(examples: list[EncodedExample], settings: TrainSettings) -> str:
    """What a journal has to know of the data, and of what is made of them unless that is the default."""
    found = examples_fingerprint(examples)
    if settings.accumulate > 1:  # other batches than one of as many rows
        found = f"{found} in {settings.accumulate} batches"
    if (settings.objective, settings.reward_shaping) == ("cross-entropy", "none"):
        return found
    return f"{found} {objective_name(settings)} {settings.reward_shaping} {settings.max_new_tokens}"
