"""A machine with the model and rows of its own: it answers with scalars, and applies records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mobizo_kernels.errors import first_line
from mobizo_kernels.journal.header import parse_header
from mobizo_kernels.rounds.payloads import (
    Answer,
    Kind,
    PayloadError,
    Refusal,
    Request,
    State,
    decode_records,
    heads_of,
    kind_of,
    next_head,
    record_size,
    split_records,
)
from mobizo_kernels.zo import Objective, ZerothOrder
from mobizo_kernels.zo.batches import Batch

Batches = Callable[[int], Batch | Sequence[Batch]]
"""From the number of a step to the participant's own batch, as :meth:`ZerothOrder.step` takes it."""


class Participant:
    """Answers the payloads of a :class:`Coordinator` for one :class:`ZerothOrder`.

    No update is made but by the coordinator's records, so the adapters of all participants that have the same
    number of them are equal to the bit; the head of each answer says so.

    Args:
        zo: that makes no steps of its own: before its first step, or with a journal that has them all. A
            journal gets the records as they come, and a participant that is made anew goes on from there.

    Attributes:
        zo: as given.
        header: of the run, as its journal begins.

    Raises:
        ValueError: if steps were made that no journal knows, or the run cannot have a journal, as that of a
            model that is not wrapped.
    """

    def __init__(self, zo: ZerothOrder) -> None:
        self.zo, records = zo, b""
        if zo.journal is None:
            if zo.steps:
                raise ValueError(f"zo must be before its first step or have a journal, got step {zo.steps}")
            self.header = zo.journal_header().to_bytes()
        else:
            content = Path(zo.journal.path).read_bytes()
            _, start, _ = parse_header(content, Path(zo.journal.path))
            self.header, records = content[:start], content[start:]
        self._heads = heads_of(self.header, split_records(records, zo.estimator.queries))
        if self.steps != zo.steps:
            raise ValueError(f"zo must have the {self.steps} steps of its journal, got {zo.steps}")

    @property
    def steps(self) -> int:
        """Records that the model has."""
        return len(self._heads) - 1

    def respond(self, payload: bytes, batches: Batches, *, objective: Objective | None = None) -> bytes:
        """The reply to a payload. What is wrong with it, or with the rows, is said in a refusal.

        Args:
            payload: of :meth:`Coordinator.ask` or :meth:`Coordinator.update`.
            batches: gives the batch of a step; is called if the payload asks for losses.
            objective: what is minimised in place of the cross-entropy, see :meth:`ZerothOrder.step`.

        Raises:
            OSError: if the journal cannot be written; the records are not applied then.
        """
        try:
            if kind_of(payload) == Kind.JOIN:
                return self.state(joins=True).encode()
            request = Request.decode(payload)
            self.follow(request)
            if not request.asks:
                return self.state().encode()
            return self.answer(batches(request.step), objective=objective).encode()
        except ValueError as error:
            return Refusal(self.steps, first_line(error)).encode()

    def state(self, steps: int | None = None, *, joins: bool = False) -> State:
        """Where the participant is, or says it is.

        Args:
            steps: that it claims, at most :attr:`steps`, which is the default.
            joins: with the header, for a coordinator that does not know it yet.
        """
        steps = self.steps if steps is None else steps
        return State(steps, self._heads[steps], self.header if joins else b"")

    def follow(self, request: Request) -> None:
        """Apply the records of a request that the model does not have yet.

        Raises:
            PayloadError: naming what differs, if `zo` made a step of its own, the request is of another run
                or of a step that has passed or begins behind the records that are here, or if one of them is
                damaged. Nothing was applied.
        """
        self._check_steps()
        queries = self.zo.estimator.queries
        if request.queries != queries:
            raise PayloadError(f"expected records of {queries} coefficients, got {request.queries}")
        if request.first > self.steps:
            raise PayloadError(f"expected records from step {self.steps} on, got those from {request.first}")
        if request.step < self.steps:
            raise PayloadError(f"step {request.step} has passed: {self.steps} steps were made here")
        head, new = self._heads[request.first], []
        for step, record in enumerate(split_records(request.records, queries), request.first):
            head = next_head(head, record)
            if step >= self.steps:
                new.append(head)
            elif head != self._heads[step + 1]:
                raise PayloadError(f"another record of step {step} was applied here")
        if head != request.head:
            raise PayloadError(
                f"head is {request.head.hex()} there, but {head.hex()} here: other settings, model or records"
            )
        if new:
            size = record_size(queries)
            lacking = request.records[(self.steps - request.first) * size :]
            self.zo.apply(decode_records(lacking, self.steps, queries))
            self._heads += new

    def answer(self, batch: Batch | Sequence[Batch], *, objective: Objective | None = None) -> Answer:
        """The scalars of the next step over this participant's rows.

        Args:
            batch: as :meth:`ZerothOrder.step` takes it, like the next.
            objective: what is minimised in place of the cross-entropy.

        Raises:
            ValueError: as :meth:`ZerothOrder.losses`, or if `zo` made a step of its own.
        """
        self._check_steps()
        seen, estimator = self.zo.losses(batch, objective=objective), self.zo.estimator
        numbers = seen.losses if estimator.normalize else estimator.projected_gradients(seen.losses)
        loss = estimator.loss(seen.losses)
        return Answer(self.steps, self._heads[-1], loss, seen.weight, tuple(numbers.tolist()))

    def _check_steps(self) -> None:
        """Raise PayloadError if the model has other steps than those of the coordinator."""
        if self.zo.steps != self.steps:
            raise PayloadError(
                f"zo was to make no step of its own, but is at step {self.zo.steps}, not {self.steps}"
            )
