"""The loop of a round, whatever carries the payloads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from mobizo_kernels.errors import first_line
from mobizo_kernels.rounds.coordinator import Coordinator, Name, Round

Send = Callable[[Mapping[Name, bytes]], Iterable[tuple[Name, bytes | BaseException]]]
"""Carries payloads to participants and gives their replies in any order; those that are missing are lost."""


def run_round(coordinator: Coordinator[Name], names: Collection[Name], send: Send[Name]) -> Round[Name]:
    """One round with some of the participants.

    Args:
        coordinator: of the run.
        names: of those that take part.
        send: carries payloads to them. It is called again for those to whom there is more to say, such as
            one that has joined.

    Raises:
        ValueError: as :meth:`Coordinator.settle`, like the next.
        OSError: if the journal cannot be written.
    """
    _exchange(coordinator, {name: coordinator.ask(name) for name in names}, send)
    return coordinator.settle()


def bring_up_to_date(
    coordinator: Coordinator[Name], names: Collection[Name], send: Send[Name]
) -> dict[Name, str]:
    """Send participants the records that they lack: their adapters are the run's then. No step is made.

    Args:
        coordinator: of the run, like the next two as of :func:`run_round`.
        names: of the participants.
        send: carries payloads to them.

    Returns:
        Why some are not up to date.
    """
    _exchange(coordinator, {name: coordinator.update(name) for name in names}, send)
    return coordinator.failures()


def _exchange(coordinator: Coordinator[Name], payloads: dict[Name, bytes], send: Send[Name]) -> None:
    while payloads:
        waiting, more = set(payloads), {}
        for name, reply in send(payloads):
            waiting.discard(name)
            if isinstance(reply, BaseException):
                coordinator.lose(name, f"{type(reply).__name__}: {first_line(reply)}")
            elif (payload := coordinator.hear(name, reply)) is not None:
                more[name] = payload
        for name in waiting:
            coordinator.lose(name, "no reply")
        payloads = more
