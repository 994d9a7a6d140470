"""What `mobizo train` does: score a model, tune it by forward passes, score it again, write the results."""

from __future__ import annotations

from typing import Any

from mobizo_kernels.cli.files import check_distinct, is_within
from mobizo_kernels.cli.interrupts import StopRequest
from mobizo_kernels.cli.processes import check_alone
from mobizo_kernels.cli.results import check_output, check_output_file, remove_dead_results, result_files
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.start import journal_files, start_directory
from mobizo_kernels.cli.tensorboard import check_tensorboard
from mobizo_kernels.cli.train_eager import train_eager
from mobizo_kernels.cli.train_executorch import program_files, train_executorch
from mobizo_kernels.errors import InputError
from mobizo_kernels.files.file import remove_dead_scratch


def train(settings: TrainSettings, stop: StopRequest | None = None) -> dict[str, Any]:
    """Tune a model as `settings` say and write the adapter, the metrics and the plot to `settings.out`.

    The adapter that is kept is the latest that does not validate significantly worse than the best, the
    untuned one included.
    Test rows decide nothing: they are scored before the first step and after the last. Both engines take the
    same directions, batches, validation and test rows.

    Args:
        settings: of the run.
        stop: ends it early if it is asked for; signals ask for it while steps are made. The adapter so far is
            written then, and no test row is scored any more.

    Returns:
        The summary, which is also in metrics.json: quality before and after, the cost of a step, and the
        settings. With `settings.dry_run` what :func:`dry_run` finds, and nothing is written.

    Raises:
        InputError: something the user gave does not exist or does not fit, and no result has been written; or
            the run lost its journal, and its results up to there have been written.
    """
    check_alone()
    # A run that was cut off may have left a part of its results.
    check_output(settings.out, settings.overwrite or settings.resume)
    check_tensorboard(settings.tensorboard)
    written = result_files(settings.out)
    if settings.engine == "executorch":
        written += program_files(settings)
    check_distinct(
        {"journal": journal_files(settings.journal), "out": written},
        {"data": settings.data, "model": settings.model, "program": settings.program},
    )
    if settings.journal is not None and (
        settings.journal.is_dir() or is_within(settings.out, settings.journal)
    ):
        raise InputError(f"journal: expected a file, got the directory {str(settings.journal)!r}")
    if settings.journal is not None:
        if settings.journal.is_symlink() and not settings.journal.exists():
            raise InputError(f"journal: {str(settings.journal)!r} is a link that leads nowhere; name another")
        if settings.journal.exists() and not settings.resume:
            raise InputError(f"journal: {str(settings.journal)!r} exists; name another, or add --resume")
        check_output_file(settings.journal, "journal")
    if settings.resume and settings.journal is not None and not settings.dry_run:
        remove_dead_results(settings.out)
        remove_dead_scratch(start_directory(settings.journal))
    by = train_executorch if settings.engine == "executorch" else train_eager
    return by(settings, stop or StopRequest())
