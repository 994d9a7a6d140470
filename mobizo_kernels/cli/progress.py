"""The bar that shows how far a run is."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm


class TuningBar:
    """A bar of steps on stderr, with the loss, the speed and the last validation; a context manager.

    Args:
        steps: of the run in all.
        batch_size: rows of each.
    """

    def __init__(self, steps: int, batch_size: int) -> None:
        stream = None if sys.stderr is None else _Lasting(sys.stderr)
        self._bar = tqdm(total=steps, unit="step", desc="tuning", file=stream, disable=stream is None)
        self._batch_size = batch_size
        self._validation: dict[str, str] = {}

    def show_step(self, step: int, loss: float, seconds: float) -> None:
        """Step number `step`, from 0, has been made."""
        speed = f"{self._batch_size / seconds:.1f}"
        self._bar.set_postfix({"loss": f"{loss:.3f}", "examples/s": speed, **self._validation})
        self.reach(step + 1)

    def show_validation(self, found: str) -> None:
        """To be seen with the next step."""
        self._validation = {"validation": found}

    def reach(self, steps: int) -> None:
        """So many steps are made or applied."""
        self._bar.update(steps - self._bar.n)

    def __enter__(self) -> TuningBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class _Lasting:
    """A stream that takes what is written when its reader has gone, too: a bar is no reason to end a run.
    `mobizo train 2>&1 | tee log` loses its reader at the same Ctrl-C that asks the run to end in good order.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
