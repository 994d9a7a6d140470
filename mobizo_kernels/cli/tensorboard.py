"""What a run shows in TensorBoard."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from mobizo_kernels.cli.results import check_writable
from mobizo_kernels.errors import InputError, blame_input


def check_tensorboard(directory: Path | None) -> None:
    """Raise InputError if scalars are asked for that cannot be written, or the package for it is missing."""
    if directory is None:
        return
    if find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard: the package is not installed (pip install 'mobizo-kernels[tensorboard]')"
        )
    with blame_input("tensorboard"):
        check_writable(directory, "tensorboard")


class Scalars:
    """Writes losses, validations and speed by the number of steps made; a context manager.

    Args:
        directory: for the event file; None for none.

    Raises:
        InputError: nothing can be written there.
    """

    def __init__(self, directory: Path | None) -> None:
        self._writer: Any = None
        if directory is not None:
            from torch.utils.tensorboard import SummaryWriter

            with blame_input("tensorboard"):
                self._writer = SummaryWriter(str(directory))

    def step(self, steps: int, loss: float, lr: float, seconds: float) -> None:
        """The last of so many steps has been made."""
        self._add(steps, {"train/loss": loss, "train/lr": lr, "train/steps_per_second": 1 / seconds})

    def validation(
        self, steps: int, loss: float, accuracy: float | None, balanced_accuracy: float | None
    ) -> None:
        """Held-out rows were scored after so many steps."""
        values = {"loss": loss, "accuracy": accuracy, "balanced_accuracy": balanced_accuracy}
        self._add(steps, {f"validation/{name}": value for name, value in values.items()})

    def _add(self, steps: int, values: dict[str, float | None]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, steps)

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
