"""Work in a process of its own, and in no more than one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import ParamSpec, TypeVar

from mobizo_kernels.errors import InputError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_fresh_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """What `function` returns or raises, called in a new process: the system gets all of its memory back, and
    a peak that it measures is its own.

    Raises:
        InputError: the process was killed, as systems do that are out of memory.
    """
    others = set(active_children())
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_end_with_parent) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except KeyboardInterrupt:
            for process in set(active_children()) - others:  # leaving the pool waits for it
                process.terminate()
            raise
        except BrokenProcessPool as error:
            raise InputError(
                f"{function.__name__}: its process was killed; perhaps the memory is too small"
            ) from error


def check_alone() -> None:
    """Raise InputError if this is one of the processes of torchrun, which would all write the same files."""
    ranks = os.environ.get("WORLD_SIZE", "")
    if ranks.isdigit() and int(ranks) > 1:
        raise InputError(
            f"WORLD_SIZE: expected one process, got {ranks}: several make a run together in a script, by "
            "ZerothOrder(process_group=...) or ZOTrainer, as docs/scale.md shows"
        )


def _end_with_parent() -> None:
    """Let this process end when the one that started it has ended, in whatever way, or wants it to."""
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal tells both, and that one answers
        signal.signal(number, signal.SIG_IGN)

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
