"""Who makes the steps of a run: one process, or the ranks of a process group, each its part of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from mobizo_kernels.journal import read_journal
from mobizo_kernels.loss.rows import NothingLabelled
from mobizo_kernels.optim.base import ZOOptimizer
from mobizo_kernels.optim.digest import digest, state_digest
from mobizo_kernels.optim.records import Records
from mobizo_kernels.zo.batches import Measure, Measured
from mobizo_kernels.zo.exchange import Exchange, Share, batch_checksum, check_states
from mobizo_kernels.zo.identity import shared_identity
from mobizo_kernels.zo.split import Split, make_split
from mobizo_kernels.zo.trials import Trials
from mobizo_kernels.zo.workers import RanksDisagree, Workers

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from mobizo_kernels.zo.zeroth_order import ZerothOrder

Value = TypeVar("Value")

_START = "the start"


@dataclass(frozen=True)
class TeamSettings:
    """How a run is divided, by the arguments of :class:`mobizo_kernels.ZerothOrder` of the same names.

    Raises:
        ValueError: naming the argument, if one needs a process group or is out of range.
    """

    groups: int
    several: bool
    split: str | None = None
    query_ranks: int | None = None
    slices: int | None = None
    check_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("split", "query_ranks"):
            if not self.several and getattr(self, name) is not None:
                raise ValueError(f"{name} needs process_group, got {getattr(self, name)!r}")
        every = self.check_every
        if every is not None and (not isinstance(every, int) or every < 1):
            raise ValueError(f"check_every must be None or at least 1, got {every!r}")
        if not self.several:
            self.split_of(1)

    def split_of(self, ranks: int) -> Split:
        """Among so many ranks. Raises ValueError as :func:`make_split`."""
        split = self.split or ("queries" if self.several else "rows")
        return make_split(
            split, groups=self.groups, ranks=ranks, query_ranks=self.query_ranks, slices=self.slices
        )


class Team:
    """Makes what has to be made together. Until :meth:`join` this process is alone.

    Args:
        settings: of the run.

    Attributes:
        rank: of this process, 0 if it is alone.
        split: who does what.
    """

    def __init__(self, settings: TeamSettings) -> None:
        self._settings = settings
        self.rank, self.split = 0, Split(settings.groups, settings.slices or 1)
        self._workers: Workers | None = None
        self._exchange: Exchange | None = None
        self._run = ""  # a digest of its settings
        self.records = False  # rank 0 has a journal

    def join(self, zo: ZerothOrder, group: ProcessGroup, *, opens: bool = False) -> bool:
        """See :meth:`ZerothOrder.join`.

        Args:
            zo: of this rank.
            group: of all.
            opens: this rank is given a journal to open.

        Returns:
            Whether rank 0 is: all have to take part then.
        """
        workers = Workers(group, next(zo.model.parameters()).device)
        split = self._settings.split_of(workers.count)
        shared = shared_identity(zo, split, self._settings.check_every)
        workers.agree(shared)
        workers.from_first(lambda: _make_recorded(zo), _START)
        told = workers.gather([zo.steps, opens, zo.journal is not None, self.records], _START)
        _check_journals(*told[:, 1:].bool().unbind(1))
        made = [int(steps) for steps in told[:, 0].tolist()]
        first, last = min(made), max(made)
        if first < last:
            missed = workers.from_first(lambda: _recorded(zo, first, last), _START)
            zo.apply(missed[zo.steps - first :])
        check_states(workers.gather([state_digest(zo.optimizer)], _START)[:, 0], last)
        self.records = bool(told[0, 2])
        self.rank, self.split, self._run = workers.rank, split, f"{digest(shared):012x}"
        self._workers, self._exchange = workers, Exchange(workers, split)
        return bool(told[0, 1])

    def compare(self, zo: ZerothOrder) -> None:
        """See :meth:`ZerothOrder.check_ranks`."""
        if self._workers is not None:
            when = f"check_ranks() at step {zo.steps}"
            self._workers.same([zo.steps], when, "rank {rank} made {value:.0f} steps, rank 0 {first:.0f}")
            check_states(self._workers.gather([state_digest(zo.optimizer)], when)[:, 0], zo.steps)

    def from_first(self, make: Callable[[], Value], when: str) -> Value:
        """What `make` gives on rank 0, see :meth:`Workers.from_first`."""
        return make() if self._workers is None else self._workers.from_first(make, when)

    def confirm(self, make: Callable[[], object], when: str) -> None:
        """Let rank 0 do something to the journal before any rank goes on, see :meth:`Workers.confirm`."""
        if self._workers is not None and self.records:
            self._workers.confirm(make, when)
        elif self.rank == 0:
            make()

    def losses(
        self,
        trials: Trials,
        measured: Callable[[], Measured],
        seeds: torch.Tensor,
        *,
        step: int,
        optimizer: ZOOptimizer,
        terms: Mapping[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The losses of a step over the rows of all ranks.

        Args:
            trials: takes the losses of this rank.
            measured: checks what this rank was given and reads its batches.
            seeds: int64 [q], of the queries.
            step: its number.
            optimizer: whose state is compared where that is due.
            terms: options of the step by name, which ranks have to agree on.

        Returns:
            float32 [G], and what :meth:`Trials.losses` left on the parameters.

        Raises:
            Exception: as :class:`Exchange`, on all ranks; nothing is left on the parameters then.
        """
        if self._exchange is None:
            return trials.losses(measured(), seeds, self.split.groups_of(0))
        every = self._settings.check_every
        state = state_digest(optimizer) if every is not None and step % every == 0 else None
        lr = float(optimizer.param_groups[0]["lr"])
        share = Share(step, lr, state, terms={**terms, "journal": self.records, "run": self._run})
        share, standing = self._share(trials, measured, seeds, share, optimizer)
        try:
            return self._exchange(share), standing
        except BaseException:
            trials.take_off(seeds, standing)
            raise

    def _share(
        self,
        trials: Trials,
        measured: Callable[[], Measured],
        seeds: torch.Tensor,
        share: Share,
        optimizer: ZOOptimizer,
    ) -> tuple[Share, torch.Tensor | None]:
        """What this rank has to tell of a step, an error of its own included."""
        errors: list[Exception] = []
        measure: Measure = _no_losses
        weight = checksum = 0
        try:
            groups = optimizer.param_groups
            rules = [{**optimizer.rule_of(group).as_json(), "lr": float(group["lr"])} for group in groups]
            share = replace(share, terms={**share.terms, "optimizer": rules})
            found = measured()
            measure, weight, checksum = found, sum(found.weights()), batch_checksum(found.batches)
        except NothingLabelled:  # the rows of other ranks may have something
            pass
        except Exception as error:  # the others wait to hear of it
            errors.append(error)

        def careful(groups: int) -> torch.Tensor:
            # Each pass over parameters that are perturbed in place rounds, so all ranks make all of them.
            try:
                return _no_losses(groups) if errors else measure(groups)
            except Exception as error:
                errors.append(error)
                return _no_losses(groups)

        try:
            losses, standing = trials.losses(careful, seeds, self.split.groups_of(self.rank))
        except Exception as error:
            return share.with_error(error), None
        if errors:
            return share.with_error(errors[0]), standing
        return share.with_losses(losses, weight, checksum), standing


def _make_recorded(zo: ZerothOrder) -> None:
    """Make the step that is in the journal already: another rank was lost before all had heard of it."""
    if zo.journal is not None and zo.journal.steps > zo.steps:
        zo.apply(read_journal(zo.journal.path)[1][zo.steps :])


def _check_journals(opens: torch.Tensor, has: torch.Tensor, had: torch.Tensor) -> None:
    """Raise RanksDisagree unless the journal of a run, if there is one, is that of rank 0; bool [ranks] each.

    Args:
        opens: the rank is given a journal to open.
        has: it has one open.
        had: it knows of one, which rank 0 had.
    """
    if has[0] or opens[0]:
        if has[1:].any():
            rank = int(has[1:].nonzero()[0]) + 1
            raise RanksDisagree(f"rank {rank} has a journal open, but rank 0 has one as well, and writes it")
        return
    if (has | had).any():
        rank = int((has | had).nonzero()[0])
        raise RanksDisagree(
            f"the run of rank {rank} has a journal, but rank 0 of the group, which would write it, has not: "
            "start all ranks again with resume=True, or call close_journal() on all to go on without"
        )
    if opens.any():
        rank = int(opens.nonzero()[0])
        raise RanksDisagree(f"rank {rank} is given a journal, but rank 0, which would write it, has none")


def _recorded(zo: ZerothOrder, first: int, last: int) -> Records:
    """Steps of the journal of rank 0. Raises ValueError if it does not have them."""
    if zo.journal is None or zo.journal.steps != last or zo.steps != last:
        raise ValueError(
            f"process_group: a rank has made {first} steps and another {last}; to make the missing ones "
            "again, rank 0 has to have made all of them, with their journal open"
        )
    return read_journal(zo.journal.path)[1][first:last]


def _no_losses(groups: int) -> torch.Tensor:
    """Of no rows, float32 [groups] on the CPU."""
    return torch.zeros(groups, dtype=torch.float32, device="cpu")
