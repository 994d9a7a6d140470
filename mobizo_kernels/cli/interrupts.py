"""Ctrl-C, SIGTERM and SIGHUP: what ends a command, and how a run ends in good order."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import UnsupportedOperation
from types import FrameType
from typing import Any, TypeVar

Found = TypeVar("Found")


# What ends a command beside Ctrl-C: somebody who asks politely, a terminal that is closed.
_ENDS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """A signal came that ends a process: like an interrupt from the keyboard, but for the exit code.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def exit_code(error: BaseException) -> int:
    """128 and the number of the signal, as shells have it."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)


@contextmanager
def ending_signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise :class:`Terminated` inside the block, so that what is half written is cleared
    away.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    with _handled(dict.fromkeys(_ENDS, terminate)):
        yield


class StopRequest:
    """The wish that a run ends after the step that it is making.

    Attributes:
        signal: number of the signal that asked for it; None if none did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Whether the run is to end."""
        return self.signal is not None

    def heeding(self, work: Callable[[], Found]) -> Found | None:
        """What `work` gives; None if a signal ends it, which has then been heard."""
        try:
            return work()
        except KeyboardInterrupt as error:
            self.signal = exit_code(error) - 128
            return None

    @contextmanager
    def armed(self) -> Iterator[None]:
        """The first of the signals in the block asks; the second does what it did before the block."""

        def ask(number: int, frame: FrameType | None) -> None:
            self.signal = number
            for one, handler in before.items():  # a terminal that is closed says so more than once
                signal.signal(one, signal.SIG_IGN if one == number == signal.SIGHUP else handler)
            tell("\nmobizo: ending after this step; once more ends at once\n")

        with _handled(dict.fromkeys((signal.SIGINT, *_ENDS), ask)) as before:
            yield


def tell(text: str) -> None:
    """Write to stderr, also from a signal handler: past Python's buffer, which may be writing just now and
    would then refuse with RuntimeError. A reader that has gone, as `tee` at the same Ctrl-C or the terminal
    that was closed, is told nothing.
    """
    with suppress(OSError, ValueError):
        try:
            descriptor = sys.stderr.fileno()
        except (AttributeError, UnsupportedOperation):  # closed, or no file
            if sys.stderr is not None:
                sys.stderr.write(text)
        else:
            os.write(descriptor, text.encode())


@contextmanager
def _handled(handlers: dict[int, Any]) -> Iterator[dict[int, Any]]:
    """Handle signals in the block, but for those that the process ignores, as background jobs do. Outside of
    the main thread, which alone may, nothing is handled. Gives the handlers of before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before = {number: signal.getsignal(number) for number in handlers}
    before = {number: there for number, there in before.items() if there not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handlers[number])
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
