"""Files changed at random: Python's reader and the native one take the same, read the same, refuse the same.

`make fuzz` tries more of them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from differential import Kind, attempt, kinds

KINDS = ("data set", "adapter", "journal", "description", "csv", "jsonl", "conversations")


@cache
def known() -> dict[str, Kind]:
    return kinds()


def test_all_kinds_are_here() -> None:
    assert tuple(known()) == KINDS


@pytest.mark.parametrize("name", KINDS)
def test_one_verdict(name: str, tmp_path: Path) -> None:
    taken = sum(attempt(known()[name], seed, tmp_path) for seed in range(200))
    assert 10 < taken < 190
