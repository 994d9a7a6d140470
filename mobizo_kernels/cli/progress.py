"""The bar that shows how far a run is."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm


class TuningBar:
    """A bar of steps on stderr, with the loss, the speed and the last validation; a context manager.

    Args:
        steps: of the run in all.
        batch_size: rows of each.
    """

    def __init__(self, steps: int, batch_size: int) -> None:
        self._bar, self._batch_size = tqdm(total=steps, unit="step", desc="tuning"), batch_size
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
