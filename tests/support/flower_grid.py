"""A Grid of Flower's whose nodes are in this process: messages go through Flower's own bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity


class LocalGrid(Grid):
    """Calls a ClientApp for each message. Nodes that are `away` do not reply, an exception is an error."""

    def __init__(self, app: ClientApp, nodes: int, run_id: int) -> None:
        self.app = app
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, 1, 1  # for Message
        self.contexts = {
            node: Context(run_id, node, {"partition-id": number, "num-partitions": nodes}, RecordDict(), {})
            for number, node in enumerate(range(100, 100 + nodes))
        }
        self.away: set[int] = set()
        self.sent = self.received = 0
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.away:
                continue
            proto = message_to_proto(message)
            self.sent += proto.ByteSize()
            delivered = message_from_proto(proto)
            try:
                reply = self.app(delivered, self.contexts[node])
            except Exception as error:  # as Flower's own runtimes do
                reply = Message(error=Error(code=1, reason=str(error)), reply_to=delivered)
            proto = message_to_proto(reply)
            self.received += proto.ByteSize()
            replies.append(message_from_proto(proto))
        return replies
