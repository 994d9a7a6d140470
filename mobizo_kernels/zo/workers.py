"""The processes of a group as one of them sees the others: what they tell each other, and how they agree.

Everything is gathered, and each rank computes the same of it in the same order. No reduction of a backend is
used, whose order, and so whose bits, would be the backend's to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from mobizo_kernels.errors import first_line
from mobizo_kernels.journal import JournalLost
from mobizo_kernels.journal.header import difference
from mobizo_kernels.optim.digest import digest

Value = TypeVar("Value")

_FINE, _FAILED, _LOST = 0.0, 1.0, 2.0


class RanksDisagree(ValueError):
    """Ranks that should be equal are not: another setting, batch, step or state. It names the rank."""


class RankFailed(RuntimeError):
    """Another rank raised an error, is gone, or did not answer within the timeout of the process group."""


class Workers:
    """The ranks of a process group. Every method but the constructor is to be called on all of them.

    Args:
        group: of torch.distributed, of which this process is a member.
        device: of the model; what is told travels from there, unless the group has a backend for the CPU.

    Attributes:
        group: as given.
        rank: of this process in it.
        count: of ranks.

    Raises:
        ValueError: if this process is no member of the group.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        if not isinstance(group, dist.ProcessGroup):
            raise ValueError(
                f"process_group must be one of torch.distributed that this process is in, got {group!r}; "
                "torch.distributed.group.WORLD, behind init_process_group(), has all processes"
            )
        self.group, self.rank, self.count = group, dist.get_rank(group), dist.get_world_size(group)
        on_cpu = "cpu:" in dist.distributed_c10d.get_backend_config(group)
        self._device = torch.device("cpu") if on_cpu else device

    def gather(self, values: Sequence[float], when: str) -> torch.Tensor:
        """Values of every rank, float64 [ranks, n] on the CPU, n being the same everywhere.

        Args:
            values: of this rank.
            when: for an error, e.g. "step 3".

        Raises:
            RankFailed: if a rank is gone, or does not answer in time.
        """
        mine = torch.tensor(values, dtype=torch.float64, device=self._device)
        told = [torch.empty_like(mine) for _ in range(self.count)]
        with self._answering(when):
            dist.all_gather(told, mine, group=self.group)
        return torch.stack(told).cpu()

    def told_by(self, rank: int, value: Value | None, when: str) -> Value:
        """What `value` is on one rank, on all of them; raises as :meth:`gather`."""
        box: list[Any] = [value]
        with self._answering(when):
            source = dist.get_global_rank(self.group, rank)
            dist.broadcast_object_list(box, source, group=self.group, device=self._device)
        return cast(Value, box[0])

    def agree(self, fields: Mapping[str, Any]) -> None:
        """Raise RanksDisagree, naming rank and field, unless all ranks have the same fields with the same
        values, of which digests travel.
        """
        when = "the start"
        names = [float(digest(sorted(fields)))]
        self.same(names, when, "rank {rank} runs another version, which has other settings than rank 0")
        told = self.gather([float(digest(value)) for value in fields.values()], when)
        for rank, field in (told != told[0]).nonzero().tolist():
            name, value = list(fields.items())[field]
            here, there = self.told_by(0, value, when), self.told_by(rank, value, when)
            raise RanksDisagree(f"rank {rank} differs: {difference(name, there, here, 'on rank 0')}")

    def same(self, values: Sequence[float], when: str, sentence: str) -> None:
        """Raise RanksDisagree by `sentence`, with the first rank that differs from rank 0 for `{rank}`, its
        value for `{value}` and that of rank 0 for `{first}`, unless all ranks have the same values.
        """
        check_same(self.gather(values, when), sentence)

    def from_first(self, make: Callable[[], Value], when: str) -> Value:
        """What `make` gives on rank 0, where alone it is called, on all ranks.

        Raises:
            RankFailed: if it raises an error, which goes on on rank 0.
        """
        value: Value | None = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                value = make()
            except Exception as raised:  # the others wait to hear of it
                error = raised
        text = None if error is None else first_line(error)
        found, text = self.told_by(0, (value, text), when)
        if error is not None:
            raise error
        if text is not None:
            raise RankFailed(f"{when}: rank 0 failed: {text}")
        return cast(Value, found)

    def confirm(self, make: Callable[[], object], when: str) -> None:
        """Let rank 0 do what has to be done before any rank goes on, such as to record a step.

        Raises:
            JournalLost: on all ranks, if that is what `make` raises.
            RankFailed: on the others, if it raises another error.
        """
        error: Exception | None = None
        if self.rank == 0:
            try:
                make()
            except Exception as raised:
                error = raised
        code = _FINE if error is None else _LOST if isinstance(error, JournalLost) else _FAILED
        told = torch.tensor([code], dtype=torch.float64, device=self._device)
        with self._answering(when):
            dist.broadcast(told, dist.get_global_rank(self.group, 0), group=self.group)
        if told.item() == _FINE:
            return
        text = self.told_by(0, None if error is None else first_line(error), when)
        if error is not None:
            raise error
        raise JournalLost(text) if told.item() == _LOST else RankFailed(f"{when}: rank 0 failed: {text}")

    @contextmanager
    def _answering(self, when: str) -> Iterator[None]:
        """A backend's error, which is a RuntimeError, becomes one that says what happened."""
        try:
            yield
        except RuntimeError as error:
            raise RankFailed(
                f"{when}: a rank is gone, or did not answer within the timeout of the process group, which "
                f"init_process_group(timeout=...) sets, or is in another call, of which its own error tells; "
                f"{dist.get_backend(self.group)} says: "
                f"{first_line(error)}"
            ) from error


def check_same(told: torch.Tensor, sentence: str) -> None:
    """Raise RanksDisagree, see :meth:`Workers.same`, if a rank's values are not those of rank 0.

    Args:
        told: float64 [ranks, n].
        sentence: with {rank}, {value} and {first}.
    """
    for rank, column in (told != told[0]).nonzero().tolist():
        value, first = told[rank, column].item(), told[0, column].item()
        raise RanksDisagree(sentence.format(rank=rank, value=value, first=first))
