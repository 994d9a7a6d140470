"""The machine that has the journal and no model: it asks, weighs the answers, and records the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch

from mobizo_kernels.journal import JournalHeader, JournalWriter
from mobizo_kernels.journal.header import VERSION, PathLike, difference, parse_header, read_header
from mobizo_kernels.optim.records import StepRecord, record_of, to_bytes
from mobizo_kernels.rounds.payloads import (
    Answer,
    Kind,
    PayloadError,
    Refusal,
    Request,
    State,
    heads_of,
    join,
    kind_of,
    next_head,
    record_size,
    split_records,
)
from mobizo_kernels.zo import Estimator, make_estimator

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Round(Generic[Name]):
    """What a round made.

    Attributes:
        step: its number, from 0.
        loss: mean over the labelled tokens of all answers; NaN if there was none.
        skipped: too few answers, or a coefficient that is not finite: the adapters stay as they were.
        weights: labelled tokens, or rows, of each participant whose answer counts.
        refused: why the answers of others do not.
    """

    step: int
    loss: float
    skipped: bool
    weights: dict[Name, int]
    refused: dict[Name, str]


class Coordinator(Generic[Name]):
    """Leads a run whose participants send scalars. A context manager, which lets the journal go.

    It has the journal and, of each participant, the number of records that this one has. The model is never
    here: what a step does to it is q coefficients, made of the answers and the rule of the updates.

    :meth:`ask` makes the payload for a participant, :meth:`hear` takes the reply, :meth:`settle` ends the
    round. `run_round` does the three. A participant's name is whatever can be a key.

    Args:
        journal: of the run. It is made when the first participant has joined, whose settings become the
            run's; others have to have the same.
        header: of the run, if it is to be known before; :meth:`ZerothOrder.journal_header` makes it.
        resume: go on with `journal` if there is such a file.
        lr: learning rate of a step, by its number; that of the header by default.
        fewest: answers that a round needs. With fewer it is skipped, and the next one goes on with new
            directions.

    Attributes:
        header: of the run; None until the first participant has joined.

    Raises:
        ValueError: naming the argument, if `fewest` is below 1, `header` has an estimator that there is
            not, or the journal is damaged or has another header.
        OSError: if `journal` exists without `resume`, is held by another run, or cannot be read or written.
    """

    def __init__(
        self,
        journal: PathLike,
        *,
        header: JournalHeader | None = None,
        resume: bool = False,
        lr: Callable[[int], float] | None = None,
        fewest: int = 1,
    ) -> None:
        if fewest < 1:
            raise ValueError(f"fewest must be at least 1, got {fewest}")
        self.header, self._path, self._lr, self._fewest = header, Path(journal), lr, fewest
        self._journal: JournalWriter | None = None
        self._records = bytearray()
        self._heads: list[bytes] = []
        self._updates = 0
        self._has: dict[Name, int] = {}
        self._answers: dict[Name, Answer] = {}
        self._refused: dict[Name, str] = {}
        self._asks = True
        if self._path.exists() and not resume:
            raise FileExistsError(f"journal {journal} exists already; name another file, or resume its run")
        if self._path.exists():
            self._open(header or read_header(self._path))
        elif header is not None:
            self._create(header)

    @property
    def steps(self) -> int:
        """Made so far: the number of the next round."""
        return max(len(self._heads) - 1, 0)

    @property
    def head(self) -> bytes:
        """Of all records: that of every participant that has them.

        Raises:
            ValueError: if there is no run yet: no `header` was given, and no participant has joined.
        """
        if not self._heads:
            raise ValueError("head is that of a run, which begins when the first participant has joined")
        return self._heads[-1]

    def ask(self, name: Name) -> bytes:
        """The payload that asks a participant for its scalars, with the records that it lacks; or who it is,
        if that is not known.
        """
        self._asks = True
        return self._request(name)

    def update(self, name: Name) -> bytes:
        """The payload that brings a participant up to date and asks for nothing."""
        self._asks = False
        return self._request(name)

    def hear(self, name: Name, payload: bytes) -> bytes | None:
        """Take a reply. One that is refused is in the next :class:`Round`, with the reason.

        Returns:
            A payload to be sent to the participant as well, if there is more to say, or None.
        """
        try:
            return self._heard(name, payload)
        except ValueError as error:
            if name not in self._answers:  # one that comes late, or twice, takes nothing from an answer
                self.lose(name, str(error))
            return None

    def lose(self, name: Name, reason: str) -> None:
        """Count a participant as one that does not answer in this round. In the next it is sent all records
        again that it may not have got.
        """
        self._answers.pop(name, None)
        self._refused[name] = reason

    def failures(self) -> dict[Name, str]:
        """Why participants were refused or lost since the last round; they are forgotten here."""
        refused, self._refused = self._refused, {}
        return refused

    def settle(self) -> Round[Name]:
        """End the round: the record of its step, made of the answers heard, is in the journal.

        Raises:
            ValueError: if no participant has joined yet; it says why each was refused. Or if the learning
                rate of the step is out of range.
            JournalLost: if the journal is no longer what this run wrote.
            OSError: if the journal cannot be written.
        """
        if self.header is None or self._journal is None:
            raise ValueError(f"a round needs a participant that has joined, got {self.failures() or 'none'}")
        answers, step = self._answers, self.steps
        record = self._record(list(answers.values()))
        self._journal.append(step, record)
        content = to_bytes(step, record, VERSION)
        self._records += content
        self._heads.append(next_head(self._heads[-1], content))
        self._updates += record.applied
        self._answers, refused = {}, self.failures()
        weights = {name: answer.weight for name, answer in answers.items()}
        return Round(step, record.loss, not record.applied, weights, refused)

    def close(self) -> None:
        """Let the journal go; a second call does nothing."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Coordinator[Name]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, header: JournalHeader) -> None:
        self._journal, records = JournalWriter.resume(self._path, header)
        content, head = self._path.read_bytes(), header.to_bytes()
        self.header, self._updates = header, int(records.applied.sum())
        self._records = bytearray(content[parse_header(content, self._path)[1] :])
        self._heads = heads_of(head, split_records(bytes(self._records), header.queries))

    def _create(self, header: JournalHeader) -> None:
        _estimator(header)  # no run is made that has none
        self._journal = JournalWriter.create(self._path, header)
        self.header, self._heads = header, heads_of(header.to_bytes(), [])

    def _request(self, name: Name) -> bytes:
        if name not in self._has or self.header is None:
            return join()
        first, queries = self._has[name], self.header.queries
        records = bytes(self._records[first * record_size(queries) :])
        return Request(self.steps, self.head, first, queries, records, self._asks).encode()

    def _heard(self, name: Name, payload: bytes) -> bytes | None:
        kind = kind_of(payload)
        if kind == Kind.REFUSAL:
            refusal = Refusal.decode(payload)
            if refusal.steps < self._has.get(name, 0):
                self._has[name] = refusal.steps  # it lost some: it is sent them once more
                return self._request(name)
            self._has.pop(name, None)  # the next time it is asked who it is: that may say more
            raise PayloadError(refusal.reason)
        if kind == Kind.JOINED:
            if name in self._has:
                raise PayloadError("expected an answer, got JOINED")
            self._admit(name, State.decode(payload))
            return self._request(name)
        if name not in self._has:
            raise PayloadError(f"expected JOINED, got {kind.name}")
        if not self._asks:
            self._check_head(State.decode(payload).steps, State.decode(payload).head)
        else:
            self._answers[name] = self._checked(Answer.decode(payload))
            self._refused.pop(name, None)  # an earlier reply in this round
        self._has[name] = self.steps
        return None

    def _admit(self, name: Name, state: State) -> None:
        """Let a participant take part if it is of the same run and its records are the journal's."""
        header, end, _ = parse_header(state.header, Path(str(name)))
        if end != len(state.header):
            raise PayloadError("its header is followed by something else")
        if self.header is None:
            if state.steps:
                raise PayloadError(f"a run begins here, but {state.steps} steps were made there")
            self._create(header)
        assert self.header is not None
        for part in (field.name for field in fields(header)):
            here, there = getattr(self.header, part), getattr(header, part)
            if here != there:
                raise PayloadError(difference(part, there, here, "in this run"))
        if state.steps > self.steps:
            raise PayloadError(f"{state.steps} steps were made there, but {self.steps} here")
        if state.head != self._heads[state.steps]:
            raise PayloadError(f"its {state.steps} records are not those of this run")
        self._has[name] = state.steps

    def _check_head(self, step: int, head: bytes) -> None:
        if step != self.steps:
            raise PayloadError(f"expected the reply to round {self.steps}, got one to round {step}")
        if head != self.head:
            raise PayloadError(f"head is {head.hex()} there, but {self.head.hex()} here: other records")

    def _checked(self, answer: Answer) -> Answer:
        assert self.header is not None
        self._check_head(answer.step, answer.head)
        estimator = _estimator(self.header)
        count = estimator.groups if self.header.normalize else self.header.queries
        if len(answer.numbers) != count:
            what = "losses" if self.header.normalize else "projected gradients"
            raise PayloadError(f"expected {count} {what}, got {len(answer.numbers)}")
        if not all(map(math.isfinite, (answer.loss, *answer.numbers))):
            raise PayloadError("its loss or one of its scalars is not finite")
        if answer.weight < 1:
            raise PayloadError(f"expected a weight of 1 at least, got {answer.weight}")
        return answer

    def _record(self, answers: Collection[Answer]) -> StepRecord:
        """The step that the mean of all answers makes, by the numbers that :meth:`ZerothOrder.step` makes of
        all rows in one batch.
        """
        assert self.header is not None
        queries = self.header.queries
        if len(answers) < self._fewest:
            return StepRecord.skipped(queries, float("nan"))
        total = sum(answer.weight for answer in answers)
        # Exact sums, so that the order in which answers arrive has no say.
        means = [
            math.fsum(answer.weight * number for answer, number in zip(answers, column, strict=True)) / total
            for column in zip(*((answer.loss, *answer.numbers) for answer in answers), strict=True)
        ]
        loss, slopes = means[0], torch.tensor(means[1:], dtype=torch.float32, device="cpu")
        if self.header.normalize:
            slopes = _estimator(self.header).projected_gradients(slopes)
        rule = self.header.optimizer
        if self._lr is not None:
            rule = replace(rule, lr=self._lr(self.steps))  # which checks it
        record = record_of(rule, slopes.double(), lr=rule.lr, updates=self._updates, loss=loss)
        return record if record.coeffs.isfinite().all() else StepRecord.skipped(queries, loss)


def _estimator(header: JournalHeader) -> Estimator:
    return make_estimator(
        header.estimator, queries=header.queries, eps=header.eps, normalize=header.normalize
    )
