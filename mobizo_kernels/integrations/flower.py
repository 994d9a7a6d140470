"""Federated runs on Flower (flwr): messages hold seeds and scalars, and the server has no model.

Client and server are Flower's: a ClientApp, made by :func:`client_app`, and a strategy,
:class:`SeedsAndScalars`. docs/federated.md says what travels, and what a server learns from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any

from mobizo_kernels.integrations.extras import of_extra
from mobizo_kernels.journal import JournalHeader
from mobizo_kernels.journal.header import PathLike
from mobizo_kernels.rounds import Coordinator, Participant, PayloadError, Round, bring_up_to_date, run_round
from mobizo_kernels.rounds.payloads import (
    Kind,
    Refusal,
    Request,
    heads_of,
    kind_of,
    record_size,
    split_records,
)
from mobizo_kernels.zo import Objective, ZerothOrder
from mobizo_kernels.zo.batches import Batch

with of_extra("flower"):
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common import log
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg, Result
    from flwr.serverapp.strategy.strategy_utils import sample_nodes

RECORD, PAYLOAD, RECORDS = "mobizo", "payload", "records"
"""Names in a message, and in the state of a node."""

Evaluate = Callable[[ZerothOrder, Context], Mapping[str, float]]

_participants: dict[int, Participant] = {}  # of this process by run: a model is not loaded for each message


def client_app(
    make: Callable[[Context], ZerothOrder],
    batches: Callable[[Context, int], Batch | Sequence[Batch]],
    *,
    evaluate: Evaluate | None = None,
    objective: Objective | None = None,
    mods: list[Any] | None = None,
) -> ClientApp:
    """The ClientApp of a run.

    A node keeps the records that it has in Flower's `context.state`, 28 + 4q bytes each. So any process can
    answer for it: one that has no model yet makes it and applies them.

    Args:
        make: gives the :class:`ZerothOrder`, before its first step and without a journal; the same settings
            and the same model on all nodes. Called once in a process for a run.
        batches: from the context of a node and the number of a step to this node's batch.
        evaluate: from the optimizer, whose model has the run's adapter then, to numbers for
            :meth:`SeedsAndScalars.aggregate_evaluate`; one of them is "num-examples", their weight.
        objective: what is minimised in place of the cross-entropy, see :meth:`ZerothOrder.step`.
        mods: as of ClientApp.
    """
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        payload = reply(message, context, participant(make, context), batches, objective)
        return Message(_content(payload), reply_to=message)

    if evaluate is not None:

        @app.evaluate()
        def measure(message: Message, context: Context) -> Message:
            own = participant(make, context)
            content = _content(reply(message, context, own, batches, objective))
            if kind_of(_payload(content)) == Kind.REFUSAL:
                raise PayloadError(Refusal.decode(_payload(content)).reason)
            content["metrics"] = MetricRecord(dict(evaluate(own.zo, context)))
            return Message(content, reply_to=message)

    return app


def participant(make: Callable[[Context], ZerothOrder], context: Context) -> Participant:
    """The participant of this process for a run; for ClientApps of your own, as is :func:`reply`.

    Args:
        make: as of :func:`client_app`, like the next.
        context: of a node.
    """
    if context.run_id not in _participants:
        _participants.clear()  # of a run before: its model is let go
        _participants[context.run_id] = Participant(make(context))
    return _participants[context.run_id]


def reply(
    message: Message,
    context: Context,
    participant: Participant,
    batches: Callable[[Context, int], Batch | Sequence[Batch]],
    objective: Objective | None = None,
) -> bytes:
    """What a node answers to a message of :class:`SeedsAndScalars`; its records are kept in the context.

    Args:
        message: received.
        context: of the node.
        participant: of this process.
        batches: as of :func:`client_app`, like the next.
        objective: what is minimised in place of the cross-entropy.

    Raises:
        PayloadError: if the message holds no payload.
    """
    payload, queries = _payload(message.content), participant.zo.estimator.queries
    kept = _kept(context, participant)
    steps = len(kept) // record_size(queries)
    try:
        if kind_of(payload) == Kind.JOIN:
            return participant.state(steps, joins=True).encode()
        request = Request.decode(payload)
    except PayloadError as error:
        return Refusal(steps, str(error)).encode()
    if request.queries == queries and request.first <= steps:
        records = kept[: request.first * record_size(queries)] + request.records
        whole = replace(request, first=0, records=records)
        answer = participant.respond(whole.encode(), lambda step: batches(context, step), objective=objective)
        if participant.steps == request.step:
            context.state[RECORD] = ConfigRecord({RECORDS: records})
            return answer
        return Refusal(steps, Refusal.decode(answer).reason).encode()
    return Refusal(steps, f"expected records from step {steps} on, got those from {request.first}").encode()


class SeedsAndScalars(FedAvg):
    """The strategy: asks clients for scalars, weighs them by labelled tokens, and records the step.

    The ServerApp needs no model: the result is the journal. Nodes that were away are sent the records that
    they lack. A node whose answer cannot be used is named in the log, and the round goes on without it.

    Args:
        journal: of the run, on the server. It is made when the first node has joined, whose settings become
            the run's.
        header: of the run, if it is to be known before.
        resume: go on with `journal` if there is such a file.
        lr: learning rate of a step, by its number; that of the clients' settings by default.
        min_answers: with fewer a round is skipped.
        options: of FedAvg: `fraction_train`, `min_train_nodes`, `min_available_nodes`, `fraction_evaluate`
            (0 by default), `min_evaluate_nodes`, `weighted_by_key` and `evaluate_metrics_aggr_fn`.

    Attributes:
        rounds: what each round of the last :meth:`start` made.
        coordinator: of the running or last :meth:`start`.
    """

    coordinator: Coordinator[int]

    def __init__(
        self,
        journal: PathLike,
        *,
        header: JournalHeader | None = None,
        resume: bool = False,
        lr: Callable[[int], float] | None = None,
        min_answers: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(**{"fraction_evaluate": 0.0, **options})
        self._arguments: dict[str, Any] = {
            "journal": journal, "header": header, "resume": resume, "lr": lr, "fewest": min_answers
        }  # fmt: skip
        self.rounds: list[Round[int]] = []
        self._grid: Grid | None = None
        self._timeout: float | None = None
        self._asked: list[int] = []

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        *args: Any,
        **kwargs: Any,
    ) -> Result:
        """As of Strategy, without arrays. At the end all nodes that are there are brought up to date.

        Args:
            grid: of the ServerApp.
            initial_arrays: none; there for Strategy's sake.
            num_rounds: steps to make.
            timeout: seconds to wait for the answers of a round.
            args: as of Strategy, like the next.
            kwargs: further ones.

        Raises:
            ValueError: if arrays are given, or no node could join in the first round.
            OSError: if the journal exists without `resume`, or cannot be read or written.
        """
        if initial_arrays:
            raise ValueError(f"initial_arrays must be empty: no arrays travel; got {list(initial_arrays)}")
        self._grid, self._timeout, self.rounds = grid, timeout, []
        with Coordinator[int](**self._arguments) as self.coordinator:
            result = super().start(grid, ArrayRecord(), num_rounds, timeout, *args, **kwargs)
            self._tell(bring_up_to_date(self.coordinator, list(grid.get_node_ids()), self._send))
        return result

    def summary(self) -> None:
        """Log what the strategy is."""
        log(INFO, "\t├── Seeds and scalars, journal: %s", self._arguments["journal"])
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes as FedAvg does, and ask each for what it has not said yet."""
        self._grid = grid
        self._asked = self._sampled(grid, self.fraction_train, self.min_train_nodes)
        return _messages({node: self.coordinator.ask(node) for node in self._asked}, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The step that the answers make, into the journal. There are no arrays."""
        first: list[Iterable[Message]] = [replies]

        def send(payloads: Mapping[int, bytes]) -> Iterator[tuple[int, bytes | BaseException]]:
            return _replies(first.pop()) if first else self._send(payloads)

        made = run_round(self.coordinator, self._asked, send)
        self.rounds.append(made)
        self._tell(made.refused)
        return None, MetricRecord(
            {
                "step": made.step,
                "loss": made.loss,
                "weight": sum(made.weights.values()),
                "answers": len(made.weights),
                "refused": len(made.refused),
                "skipped": int(made.skipped),
            }
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Bring sampled nodes up to date, and ask them for their metrics."""
        if not self.fraction_evaluate:
            return []
        self._grid = grid
        nodes = self._sampled(grid, self.fraction_evaluate, self.min_evaluate_nodes)
        failures = bring_up_to_date(self.coordinator, nodes, self._send)
        self._tell(failures)
        ready = [node for node in nodes if node not in failures]
        return _messages({node: self.coordinator.update(node) for node in ready}, MessageType.EVALUATE)

    def _sampled(self, grid: Grid, fraction: float, fewest: int) -> list[int]:
        size = max(int(len(list(grid.get_node_ids())) * fraction), fewest)
        return sample_nodes(grid, self.min_available_nodes, size)[0]

    def _send(self, payloads: Mapping[int, bytes]) -> Iterator[tuple[int, bytes | BaseException]]:
        assert self._grid is not None
        messages = _messages(payloads, MessageType.TRAIN)
        return _replies(self._grid.send_and_receive(messages, timeout=self._timeout))

    def _tell(self, refused: Mapping[int, str]) -> None:
        for node, reason in refused.items():
            log(WARNING, "node %d does not take part in this round: %s", node, reason)


def _content(payload: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({PAYLOAD: payload})})


def _messages(payloads: Mapping[int, bytes], kind: str) -> list[Message]:
    return [Message(_content(payload), node, kind) for node, payload in payloads.items()]


def _payload(content: RecordDict) -> bytes:
    payload = content.config_records.get(RECORD, {}).get(PAYLOAD)
    if not isinstance(payload, bytes):
        raise PayloadError(f"expected a ConfigRecord {RECORD!r} with {PAYLOAD!r}, got {list(content)}")
    return payload


def _replies(messages: Iterable[Message]) -> Iterator[tuple[int, bytes | BaseException]]:
    """Node and payload, or what went wrong, of each reply."""
    for message in messages:
        node = message.metadata.src_node_id
        if message.has_error():
            yield node, RuntimeError(message.error.reason)
            continue
        try:
            yield node, _payload(message.content)
        except PayloadError as error:
            yield node, error


def _kept(context: Context, participant: Participant) -> bytes:
    """The records that a node has, which its participant gets if it lacks them; none if they are wrong."""
    kept = bytes(context.state.config_records.get(RECORD, {}).get(RECORDS, b""))
    queries = participant.zo.estimator.queries
    steps, torn = divmod(len(kept), record_size(queries))
    if torn:
        return b""
    head = heads_of(participant.header, split_records(kept, queries))[-1]
    if steps <= participant.steps:
        return kept if head == participant.state(steps).head else b""
    try:
        participant.follow(Request(steps, head, 0, queries, kept, asks=False))
    except PayloadError:
        return b""
    return kept
