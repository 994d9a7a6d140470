"""Who makes which part of a step: groups of rows in slices, slices and rows over the ranks of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SplitName = Literal["queries", "rows", "both"]

_SPLITS = ("queries", "rows", "both")


@dataclass(frozen=True)
class Split:
    """A grid of ranks: those of a line share the queries of the same rows, those of a column the rows.

    Attributes:
        groups: G, of a step.
        slices: forwards that a step's groups are run in, by whoever runs them. They alone, not the ranks,
            decide on the bits.
        ranks: that make the step together.
        query_ranks: ranks in a line.
    """

    groups: int
    slices: int = 1
    ranks: int = 1
    query_ranks: int = 1

    def groups_of(self, rank: int) -> list[slice]:
        """The slices that a rank runs, each a range of groups; slices, and parts, differ by one at most."""
        bounds = _parts(self.groups, self.slices)
        return [bounds[index] for index in _range(_parts(self.slices, self.query_ranks)[self.column(rank)])]

    def column(self, rank: int) -> int:
        """Which part of the slices is the rank's."""
        return rank % self.query_ranks

    def row(self, rank: int) -> int:
        """Which part of the rows is the rank's."""
        return rank // self.query_ranks

    @property
    def rows(self) -> int:
        """Parts of the rows."""
        return self.ranks // self.query_ranks


def make_split(
    split: str, *, groups: int, ranks: int, query_ranks: int | None = None, slices: int | None = None
) -> Split:
    """Check what a run says of its split.

    Args:
        split: "queries", "rows" or "both".
        groups: G, of a step.
        ranks: in the group of processes.
        query_ranks: of "both", ranks that share the queries of the same rows; it has to divide `ranks`.
        slices: forwards of a step, see :class:`Split`; `query_ranks` by default.

    Raises:
        ValueError: naming the argument, what was expected, and what came.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    if split == "both":
        if query_ranks is None:
            raise ValueError("query_ranks must be given with split='both': ranks that share the same rows")
        if query_ranks < 1 or ranks % query_ranks:
            raise ValueError(f"query_ranks must divide the {ranks} ranks, got {query_ranks}")
    else:
        fixed = ranks if split == "queries" else 1
        if query_ranks not in (None, fixed):
            raise ValueError(
                f"query_ranks must be {fixed} with split={split!r} and {ranks} ranks, got {query_ranks}"
            )
        query_ranks = fixed
    if query_ranks > groups:
        raise ValueError(
            f"queries must make at least a group for each of the {query_ranks} ranks that share them, got "
            f"{groups} groups; take more queries, or split rows as well"
        )
    slices = query_ranks if slices is None else slices
    if not query_ranks <= slices <= groups:
        raise ValueError(
            f"slices must be from {query_ranks}, the ranks that share them, to {groups}, the groups of a "
            f"step, got {slices}"
        )
    return Split(groups, slices, ranks, query_ranks)


def _parts(count: int, parts: int) -> list[slice]:
    """0..count in contiguous parts, the first of which have one more where it does not come out even."""
    whole, more = divmod(count, parts)
    starts = [part * whole + min(part, more) for part in range(parts + 1)]
    return [slice(*pair) for pair in zip(starts, starts[1:], strict=False)]


def _range(part: slice) -> range:
    return range(part.start, part.stop)
