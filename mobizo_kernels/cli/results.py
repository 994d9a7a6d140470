"""What a run of `mobizo train` leaves behind: summary and files, the same for each engine."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from mobizo_kernels.cli.config import written_config
from mobizo_kernels.cli.environment import environment
from mobizo_kernels.cli.memory import peak_rss_mb
from mobizo_kernels.cli.plot import Kind, plot_learning_curve
from mobizo_kernels.cli.quality import Outcome
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.task_settings import as_json
from mobizo_kernels.conventions import PEFT_CONFIG, PEFT_WEIGHTS
from mobizo_kernels.errors import InputError, blame_input, first_line, naming
from mobizo_kernels.files.file import remove_dead_scratch, scratch_directory
from mobizo_kernels.training import FitResult

ADAPTER_DIRECTORY = "adapter"
METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
PLOT_FILE = "learning_curve.png"


def write_results(
    settings: TrainSettings,
    before: dict[str, float | None],
    test: Outcome | None,
    run: FitResult,
    save: Callable[[Path], None],
    **more: Any,
) -> dict[str, Any]:
    """Write all files beside their places and move them there at the end; other files are left alone.

    Args:
        settings: of the run; the files go to its `out`.
        before: the quality of the untuned model, by names that end in "_before".
        test: the test rows after the run; None if they were not scored, for the run was interrupted.
        run: what the loop gave.
        save: writes the adapter into the directory that it is given, as the PEFT directory `adapter`.
        more: what the engine has to add to the summary.

    Returns:
        The summary, which is also in metrics.json.

    Raises:
        InputError: the files cannot be written; those of an earlier run are then
            still there; or, after they were written, that the run has lost its journal.
    """
    if test is None:
        names = (name.removesuffix("_before") for name in before if not name.startswith("calibrated"))
        test = Outcome(dict.fromkeys(names), 0, [])
    summary: dict[str, Any] = {
        **before,
        **{f"{name}_after": value for name, value in test.quality.items()},
        "eval_rows": test.rows,
        "steps": len(run.losses),
        "stopped": run.stopped,
        "skipped_steps": run.skipped_steps,
        "best_step": run.best_step,
        "step_ms_median": round(1e3 * median(run.seconds), 2) if run.seconds else None,
        "peak_rss_mb": round(peak_rss_mb(), 1),
        **({"interrupted": True} if run.interrupted else {}),
        **more,
    }
    try:
        return _write(settings, summary, test, run, save)
    except (OSError, SafetensorError) as error:
        again = "with --journal FILE a run could go on" if settings.journal is None else "go on with --resume"
        raise InputError(
            f"out: the results cannot be written to {str(settings.out)!r} ({first_line(error)}); {again}"
        ) from error


def _write(
    settings: TrainSettings,
    summary: dict[str, Any],
    test: Outcome,
    run: FitResult,
    save: Callable[[Path], None],
) -> dict[str, Any]:
    """The files of `write_results`; gives the summary with the size of the adapter and the settings."""
    out = settings.out
    losses = [_finite_or_none(loss) for loss in run.losses]
    validation = [
        {
            "step": point.step,
            "loss": _finite_or_none(point.loss),
            "balanced_accuracy": _finite_or_none(point.balanced_accuracy),
        }
        for point in run.validations
    ]
    out.mkdir(parents=True, exist_ok=True)
    with scratch_directory(out, "writing") as scratch:
        save(scratch)
        weights = scratch / ADAPTER_DIRECTORY / PEFT_WEIGHTS
        summary |= {"adapter_bytes": weights.stat().st_size, "settings": as_json(settings)}
        record = {
            **summary,
            "losses": losses,
            "validation": validation,
            "predictions": test.predictions,
            "environment": environment(),
        }
        (scratch / METRICS_FILE).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        (scratch / CONFIG_FILE).write_text(written_config(summary["settings"]), encoding="utf-8")
        plot_learning_curve(scratch / PLOT_FILE, losses, validation, run.best_step, _kind(settings))
        (out / ADAPTER_DIRECTORY).mkdir(exist_ok=True)
        for path in filter(Path.is_file, sorted(scratch.rglob("*"))):
            os.replace(path, out / path.relative_to(scratch))
    if run.lost:
        lost = naming("journal", run.lost)
        raise InputError(f"{lost}; stopped after {len(losses)} steps, the results so far are in {out}")
    return summary


def _kind(settings: TrainSettings) -> Kind:
    """What the losses of a run are of."""
    if not settings.free_answers:
        return "labels"
    return "answers" if settings.objective == "cross-entropy" else "reward"


def _finite_or_none(value: float | None) -> float | None:
    """What JSON can hold."""
    return value if value is not None and math.isfinite(value) else None


def result_files(directory: Path) -> list[Path]:
    """What :func:`write_results` replaces."""
    adapter = directory / ADAPTER_DIRECTORY
    return [directory / name for name in (METRICS_FILE, CONFIG_FILE, PLOT_FILE)] + adapter_files(adapter)


def adapter_files(directory: Path) -> list[Path]:
    """The two files of a PEFT adapter."""
    return [directory / name for name in (PEFT_CONFIG, PEFT_WEIGHTS)]


def remove_dead_results(directory: Path) -> None:
    """Remove what runs left in `directory` that were killed while they wrote their results."""
    for path in (directory, directory / ADAPTER_DIRECTORY):
        remove_dead_scratch(path)
    remove_dead_scratch(directory, r"\.writing-\w+")  # as earlier versions called it


def check_output(directory: Path, overwrite: bool, option: str = "out") -> None:
    """Raise InputError unless results may go to `directory`: it is new, or empty, or may be overwritten, and
    files can be made there.
    """
    with blame_input(option):
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{option}: expected a directory, got the file {str(directory)!r}")
        if directory.is_dir() and any(directory.iterdir()) and not overwrite:
            raise InputError(
                f"{option}: {str(directory)!r} is not empty; name another directory, or add --overwrite"
            )
        for name, is_kind in (
            (ADAPTER_DIRECTORY, Path.is_dir),
            (METRICS_FILE, Path.is_file),
            (PLOT_FILE, Path.is_file),
        ):
            if (path := directory / name).exists() and not is_kind(path):
                raise InputError(f"{option}: {str(path)!r} is in the way of a result of the same name")
        check_writable(directory, option)


def check_output_file(path: Path, option: str = "out", *, overwrite: bool = True) -> None:
    """Raise InputError unless `path` may become a file: it is none yet, or one that may be overwritten."""
    with blame_input(option):
        if path.exists() and not path.is_file():
            raise InputError(f"{option}: {path} cannot be written (it exists and is no file)")
        if os.path.lexists(path) and not overwrite:
            raise InputError(f"{option}: {str(path)!r} exists; name another file, or add --overwrite")
        check_writable(path.absolute().parent, option)


def check_writable(directory: Path, option: str) -> None:
    """Raise InputError unless a file can be made in `directory`, or in the nearest there is above it. Modes
    do not tell: a file system may be read-only, or none that takes files.
    """
    # A link that leads nowhere is there, too: no directory can be made in its place.
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise InputError(f"{option}: {str(existing)!r} is no directory")
    missing = directory.absolute().parts[len(existing.absolute().parts) :]
    if ".." in missing:  # the system would have to make what is only passed through
        through = str(existing / missing[0])
        raise InputError(f"{option}: {str(directory)!r} leads through {through!r}, which does not exist")
    try:
        with TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{option}: {str(existing)!r} cannot be written to ({error.strerror})") from error
