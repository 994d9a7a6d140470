"""The records of a journal: what each step did, but for its directions, which follow from its number."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobizo_kernels.optim.update_rule import UpdateRule


@dataclass(frozen=True)
class StepRecord:
    """A step.

    Attributes:
        coeffs: float32 [q], what the update takes of each direction.
        rate: of an update by "adam", its correction included, or "sign"; for "sgd", whose coefficients have
            it in them, the learning rate.
        decay: what the update multiplies the parameters by.
        loss: of the model before the update.
        applied: False for a step that was skipped: parameters and optimizer stay as they were.
        standing: float32 [q] or None; what the trials of the step have left of each direction on the
            parameters, to be taken off before all else. No journal has it: full parameters alone are
            perturbed in place.
        others: the same step for further groups of parameters, in their order. No journal has them, either.
    """

    coeffs: torch.Tensor
    rate: float = 0.0
    decay: float = 1.0
    loss: float = float("nan")
    applied: bool = True
    standing: torch.Tensor | None = None
    others: tuple[StepRecord, ...] = ()

    @classmethod
    def skipped(cls, queries: int, loss: float, standing: torch.Tensor | None = None) -> StepRecord:
        """A step that changed nothing, for a loss or a coefficient was not finite."""
        coeffs = torch.zeros(queries, dtype=torch.float32, device="cpu")
        return cls(coeffs, loss=loss, applied=False, standing=standing)


@dataclass(frozen=True)
class Records:
    """Steps in a row: :class:`StepRecord` by :class:`StepRecord`, or a column at a time.

    Attributes:
        coeffs: float32 [n, q].
        rates: float32 [n].
        decays: float32 [n].
        losses: float32 [n]; NaN where the journal does not say.
        applied: bool [n].
    """

    coeffs: torch.Tensor
    rates: torch.Tensor
    decays: torch.Tensor
    losses: torch.Tensor
    applied: torch.Tensor

    @classmethod
    def none(cls, queries: int) -> Records:
        """No steps."""
        coeffs = torch.empty(0, queries, dtype=torch.float32, device="cpu")
        empty = coeffs.new_empty(0)
        return cls(coeffs, empty, empty, empty, empty.bool())

    def __len__(self) -> int:
        return len(self.coeffs)

    def __getitem__(self, steps: slice) -> Records:
        columns = (self.coeffs, self.rates, self.decays, self.losses, self.applied)
        return Records(*(column[steps] for column in columns))

    def __iter__(self) -> Iterator[StepRecord]:
        numbers = (self.rates.tolist(), self.decays.tolist(), self.losses.tolist(), self.applied.tolist())
        for coeffs, *values in zip(self.coeffs, *numbers, strict=True):
            yield StepRecord(coeffs, *values)


def record_of(
    rule: UpdateRule,
    slopes: torch.Tensor,
    *,
    lr: float,
    updates: int,
    loss: float = float("nan"),
    standing: torch.Tensor | None = None,
) -> StepRecord:
    """What an update by a rule is about to do. It takes no parameter: whoever knows the rule and the slopes
    can tell it.

    Args:
        rule: of the updates.
        slopes: float64 [q], the projected gradients.
        lr: learning rate of the step.
        updates: number of those before it; skipped steps are none.
        loss: of the step.
        standing: as of :class:`StepRecord`. Plain SGD takes it off by its coefficients.

    Returns:
        The step. Its coefficients may be infinite in float32.
    """
    coeffs, decay = rule.coefficient(lr, len(slopes)) * slopes, rule.decay(lr)
    if standing is not None and rule.name == "sgd" and not rule.state:
        coeffs, standing = coeffs - decay * standing.double(), None
    return StepRecord(coeffs.float(), rule.rate(lr, updates), decay, loss, standing=standing)


def record_layout(version: int, queries: int) -> np.dtype[Any]:
    """A record as it lies in a file of a version of the format, docs/formats.md."""
    numbers = [("applied", "<u4"), ("loss", "<f4"), ("rate", "<f4"), ("decay", "<f4")] if version > 1 else []
    return np.dtype([("step", "<i8"), *numbers, ("coeffs", "<f4", (queries,)), ("crc", "<u4")])


def to_bytes(step: int, record: StepRecord, version: int) -> bytes:
    """A record as it lies in a file, checksum included."""
    row: NDArray[Any] = np.zeros(1, record_layout(version, len(record.coeffs)))
    row["step"], row["coeffs"] = step, record.coeffs.numpy()
    for name in ("applied", "loss", "rate", "decay"):
        row[name] = getattr(record, name)
    row["crc"] = _checksum(row[0])
    return row.tobytes()


def parse_records(
    content: bytes, start: int, version: int, queries: int, first: int = 0, *, drop_last: bool = False
) -> tuple[Records, int]:
    """Records of a journal, up to one that was cut off.

    Args:
        content: of the file.
        start: the byte at which they begin.
        version: of the format.
        queries: coefficients in each.
        first: the step that the first is of.
        drop_last: a damaged one, if the file ends with it, is left out: a power cut may leave one.

    Returns:
        The records, and the byte after the last of them.

    Raises:
        ValueError: for any other damage; it names the step.
    """
    layout = record_layout(version, queries)
    count, torn = divmod(len(content) - start, layout.itemsize)
    rows: NDArray[Any] = np.frombuffer(content, layout, count, start)
    for index, row in enumerate(rows):
        if _checksum(row) != row["crc"]:
            is_last = index == count - 1 and not torn
            if is_last and drop_last:
                count = index
                break
            way_out = "; resuming its run drops it, and makes the step again" if is_last else ""
            raise ValueError(f"the record of step {first + index} is damaged{way_out}")
        if row["step"] != first + index:
            raise ValueError(f"expected the record of step {first + index}, got {row['step']}")
        if version > 1 and row["applied"] > 1:
            raise ValueError(
                f"the record of step {first + index} is neither applied nor skipped: {row['applied']}"
            )
    return _columns(rows[:count], version), start + count * layout.itemsize


def _columns(rows: NDArray[Any], version: int) -> Records:
    if version > 1:
        rate, decay, loss = (
            torch.from_numpy(rows[name].astype(np.float32)) for name in ("rate", "decay", "loss")
        )
        applied = torch.from_numpy(rows["applied"] == 1)
    else:  # plain SGD, which records a step that it skips as one of zeros
        ones = torch.ones(len(rows), dtype=torch.float32, device="cpu")
        rate, decay, loss, applied = 0 * ones, ones, float("nan") * ones, ones.bool()
    return Records(torch.from_numpy(rows["coeffs"].astype(np.float32)), rate, decay, loss, applied)


def _checksum(row: Any) -> int:
    return zlib.crc32(row.tobytes()[:-4])
