"""A step made by several ranks: each tells the losses that it found, and all make the same of them."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mobizo_kernels.errors import first_line
from mobizo_kernels.loss.rows import NothingLabelled
from mobizo_kernels.optim.digest import digest
from mobizo_kernels.zo.batches import Batch
from mobizo_kernels.zo.split import Split
from mobizo_kernels.zo.workers import RankFailed, RanksDisagree, Workers, check_same

HEAD = 6
"""Numbers that a rank tells beside its losses: terms, step, rate, batch, state, and weight."""

_NOT_DUE = -1.0
_FAILED = -1.0  # in the place of the terms


@dataclass(frozen=True)
class Share:
    """What one rank has to tell of a step.

    Attributes:
        step: its number.
        lr: learning rate.
        state: :func:`mobizo_kernels.optim.digest.state_digest` before the step, or None where it is not due.
        losses: float32 [n] of the groups that the rank ran.
        weight: labelled tokens of the batch, or rows of an objective; 0 if nothing is to be predicted.
        batch: :func:`batch_checksum` of what the rank was given.
        error: that kept the rank from its losses.
        terms: options of the step by name, which all ranks have to have alike.
    """

    step: int
    lr: float
    state: int | None
    losses: torch.Tensor | None = None
    weight: int = 0
    batch: int = 0
    error: Exception | None = None
    terms: Mapping[str, Any] = field(default_factory=dict)

    def with_losses(self, losses: torch.Tensor, weight: int, batch: int) -> Share:
        """The same with what the attributes of these names are."""
        return replace(self, losses=losses, weight=weight, batch=batch)

    def with_error(self, error: Exception) -> Share:
        """The same without losses."""
        return replace(self, error=error)


class Exchange:
    """What travels in each step.

    Args:
        workers: the ranks.
        split: who runs which groups, on which rows.
    """

    def __init__(self, workers: Workers, split: Split) -> None:
        self._workers, self._split = workers, split
        self._widest = max(_count(split, rank) for rank in range(split.ranks))
        self._warned = False

    def __call__(self, share: Share) -> torch.Tensor:
        """The losses of all groups over the rows of all ranks, float32 [G], the same bits on every rank.

        They are means over labelled tokens, or rows of an objective: sums in float64 in the order of the
        ranks. Where each has one batch they are those of one process that is given these batches in a list.

        Args:
            share: of this rank.

        Raises:
            RanksDisagree: if ranks are at different steps, rates or states, or share queries but not rows.
            RankFailed: if another rank failed, is gone, or does not answer in time.
            NothingLabelled: if nothing is to be predicted on any rank.
            Exception: that of `share`.
        """
        step, error = share.step, share.error
        terms = _FAILED if error is not None else float(digest(share.terms))
        head = [
            terms, float(step), share.lr, float(share.batch),
            _NOT_DUE if share.state is None else float(share.state), float(share.weight),
        ]  # fmt: skip
        losses = [] if share.losses is None else share.losses.double().tolist()
        told = self._workers.gather([*head, *losses, *[0.0] * (self._widest - len(losses))], f"step {step}")
        all_terms, steps, rates, batches, states, weights = told[:, :HEAD].unbind(1)
        if bool((failed := all_terms == _FAILED).any()):
            self._fail(failed, share)
        check_same(steps[:, None], "rank {rank} is at step {value:.0f}, but rank 0 at step {first:.0f}")
        rate = "the learning rate is {value} on rank {rank}, but {first} on rank 0"
        check_same(rates[:, None], f"step {step}: {rate}")
        self._check_terms(all_terms, share)
        check_states(states, step)
        self._check_batches(batches, step)
        return self._means(told[:, HEAD:], weights)

    def _fail(self, failed: torch.Tensor, share: Share) -> None:
        """Raise the error of this rank, or one that names the first rank that has one."""
        rank, step = int(failed.nonzero()[0]), share.step
        mine = "" if share.error is None else f"{type(share.error).__name__}: {first_line(share.error)}"
        text = self._workers.told_by(rank, mine, f"step {step}")
        if share.error is not None:
            raise share.error
        raise RankFailed(f"step {step}: rank {rank} failed, nothing was updated: {text}")

    def _check_terms(self, terms: torch.Tensor, share: Share) -> None:
        """Raise RanksDisagree by the first term that differs."""
        if bool((terms == terms[0]).all()):
            return
        rank, when = int((terms != terms[0]).nonzero()[0]), f"step {share.step}"
        first = self._workers.told_by(0, dict(share.terms), when)
        other = self._workers.told_by(rank, dict(share.terms), when)
        name = next(name for name in first if first[name] != other[name])
        raise RanksDisagree(
            f"{when}: {name} is {other[name]!r} on rank {rank}, but {first[name]!r} on rank 0"
        )

    def _means(self, told: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """float32 [G] from what the ranks told of their groups, [ranks, n], and their weights [ranks]."""
        split = self._split
        total, weight = torch.zeros(split.groups, dtype=torch.float64, device="cpu"), 0.0
        for row, part in enumerate(weights[:: split.query_ranks].tolist()):
            if not part:
                continue
            line = range(row * split.query_ranks, (row + 1) * split.query_ranks)
            losses = torch.cat([told[rank, : _count(split, rank)] for rank in line])
            if split.rows == 1:
                return losses.float()
            total += part * losses
            weight += part
        if not weight:
            raise NothingLabelled("batch has no label after a token that is not padding, on any rank")
        return (total / weight).float()

    def _check_batches(self, batches: torch.Tensor, step: int) -> None:
        split = self._split
        for rank in range(split.ranks):
            first = split.row(rank) * split.query_ranks
            if batches[rank] != batches[first]:
                raise RanksDisagree(
                    f"step {step}: the batch of rank {rank} is not that of rank {first}, with which it "
                    "shares the queries; give both the same rows, or take split='rows'"
                )
        if split.rows > 1 and len(batches.unique()) == 1 and not self._warned:
            self._warned = True
            warnings.warn(
                f"all {split.rows} parts of the rows are the same: give each rank its own, as "
                "torch.utils.data.DistributedSampler does, or take split='queries'",
                stacklevel=5,
            )


def check_states(states: torch.Tensor, step: int) -> None:
    """Raise RanksDisagree, naming who differs from most, unless all digests of states [ranks] are the same.

    Of two equal parties the one without rank 0 is named.
    """
    values, counts = states.unique(return_counts=True)
    if len(values) == 1:
        return
    most = values[counts == counts.max()]
    right = states[0] if bool((most == states[0]).any()) else most[0]
    others = [str(rank) for rank, state in enumerate(states.tolist()) if state != right]
    whose = f"rank {others[0]}" if len(others) == 1 else f"ranks {', '.join(others)}"
    raise RanksDisagree(
        f"step {step}: the tuned parameters, or the optimizer's state, of {whose} are not those of the others"
    )


def batch_checksum(batches: Sequence[Batch]) -> int:
    """crc32 over the tensors of batches."""
    found = zlib.crc32(str(len(batches)).encode())
    for batch in batches:
        for name in sorted(batch):
            tensor = batch[name]
            if isinstance(tensor, torch.Tensor):
                found = zlib.crc32(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}".encode(), found)
                flat = tensor.detach().flatten().cpu().contiguous()
                found = zlib.crc32(flat.view(torch.uint8).numpy().data, found)
    return found


def _count(split: Split, rank: int) -> int:
    return sum(part.stop - part.start for part in split.groups_of(rank))
