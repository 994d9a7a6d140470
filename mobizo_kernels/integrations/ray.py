"""A run on the actors of a Ray cluster: they have the model and rows, the driver has the journal alone.

The payloads are those of :mod:`mobizo_kernels.rounds`: docs/federated.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from mobizo_kernels.errors import first_line
from mobizo_kernels.integrations.extras import of_extra
from mobizo_kernels.journal import JournalHeader
from mobizo_kernels.journal.header import PathLike
from mobizo_kernels.rounds import Coordinator, Participant, Round, bring_up_to_date, run_round
from mobizo_kernels.zo import Objective, ZerothOrder
from mobizo_kernels.zo.batches import Batch

with of_extra("ray"):
    import ray
    from ray.exceptions import RayActorError

Result = TypeVar("Result")


class WorkerLost(RuntimeError):
    """An actor died. The step was not made; the journal ends before it.

    Attributes:
        worker: its number.
    """

    def __init__(self, worker: int, reason: str) -> None:
        super().__init__(f"worker {worker} was lost: {reason}")
        self.worker = worker


class RayRounds:
    """A group of actors that make one run. A context manager, which ends the actors.

    Args:
        workers: number of actors.
        make: from the number of an actor to its :class:`ZerothOrder`, before its first step; the same
            settings and the same model in all. Called in the actor.
        batches: from the number of an actor and that of a step to this actor's batch.
        journal: of the run, on the driver.
        header: of the run, as of :class:`Coordinator`, like the next two.
        resume: go on with `journal` if there is such a file.
        lr: learning rate of a step, by its number.
        objective: what is minimised in place of the cross-entropy, see :meth:`ZerothOrder.step`.
        min_answers: with fewer a step is skipped.
        restart: an actor that was lost is made again, after a step without it, and gets all records. False
            raises :class:`WorkerLost`.
        timeout: seconds that a step waits for answers; without end by default.
        options: of each actor, such as `num_cpus` and `num_gpus`, see `ray.remote`.

    Attributes:
        coordinator: of the run.
        actors: the handles, by number.
        restart: as given; may be changed.

    Raises:
        ValueError: naming the argument, if one is out of range, or the journal is damaged.
        OSError: if `journal` exists without `resume`, or cannot be read or written.
    """

    def __init__(
        self,
        workers: int,
        make: Callable[[int], ZerothOrder],
        batches: Callable[[int, int], Batch | Sequence[Batch]],
        *,
        journal: PathLike,
        header: JournalHeader | None = None,
        resume: bool = False,
        lr: Callable[[int], float] | None = None,
        objective: Objective | None = None,
        min_answers: int = 1,
        restart: bool = True,
        timeout: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if not 1 <= min_answers <= workers:
            raise ValueError(f"min_answers must be from 1 to {workers}, the workers, got {min_answers}")
        self.coordinator = Coordinator[int](journal, header=header, resume=resume, lr=lr, fewest=min_answers)
        self._arguments, self._options = (make, batches, objective), dict(options or {})
        self.restart, self._timeout = restart, timeout
        self.actors = {number: self._actor(number) for number in range(workers)}

    def step(self) -> Round[int]:
        """One step of all actors. Each answers over its batch, and has the records of all steps before.

        Raises:
            WorkerLost: if an actor died and `restart` is False.
            ValueError: if no actor could join: it says why.
            OSError: if the journal cannot be written.
        """
        return run_round(self.coordinator, list(self.actors), self._send)

    def update(self) -> dict[int, str]:
        """Send all actors the records that they lack: their adapters are equal to the bit then.

        Returns:
            Why some are not up to date, by number.
        """
        return bring_up_to_date(self.coordinator, list(self.actors), self._send)

    def call(self, function: Callable[[ZerothOrder], Result], worker: int = 0) -> Result:
        """What a function gives for the :class:`ZerothOrder` of an actor, such as one that saves the adapter
        or scores rows. Call :meth:`update` before.
        """
        return ray.get(self.actors[worker].call.remote(function))

    def close(self) -> None:
        """End the actors, and let the journal go."""
        for actor in self.actors.values():
            ray.kill(actor)
        self.actors = {}
        self.coordinator.close()

    def __enter__(self) -> RayRounds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _actor(self, number: int) -> Any:
        return ray.remote(_Worker).options(**self._options).remote(number, *self._arguments)

    def _send(self, payloads: Mapping[int, bytes]) -> Iterator[tuple[int, bytes | BaseException]]:
        asked = (
            (self.actors[number].respond.remote(payload), number) for number, payload in payloads.items()
        )
        pending = dict(asked)
        end = None if self._timeout is None else time.monotonic() + self._timeout
        while pending:
            left = None if end is None else max(0.0, end - time.monotonic())
            ready, _ = ray.wait(list(pending), timeout=left)
            if not ready:
                return
            number = pending.pop(ready[0])
            try:
                yield number, ray.get(ready[0])
            except RayActorError as error:
                if not self.restart:
                    raise WorkerLost(number, first_line(error)) from error
                self.actors[number] = self._actor(number)
                yield number, error
            except Exception as error:  # of the actor's own code
                yield number, error


class _Worker:
    """What runs in an actor."""

    def __init__(
        self,
        number: int,
        make: Callable[[int], ZerothOrder],
        batches: Callable[[int, int], Batch | Sequence[Batch]],
        objective: Objective | None,
    ) -> None:
        self._number, self._batches, self._objective = number, batches, objective
        self._participant = Participant(make(number))

    def respond(self, payload: bytes) -> bytes:
        return self._participant.respond(
            payload, lambda step: self._batches(self._number, step), objective=self._objective
        )

    def call(self, function: Callable[[ZerothOrder], Result]) -> Result:
        return function(self._participant.zo)
