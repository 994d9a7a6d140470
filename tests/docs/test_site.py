"""The pages of the API: what the package offers stands on one of them."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

API = Path(__file__).resolve().parents[2] / "docs/api"
ROOMS = {"mobizo_kernels": "index", "mobizo_kernels.ops": "ops"}


def named(page: Path) -> set[str]:
    """Objects for which a page has a directive, and modules of which it takes all."""
    return set(re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("module", ROOMS)
def test_pages_written_by_hand_name_all(module: str) -> None:
    public = set(import_module(module).__all__) - {"ops", "training"}
    assert named(API / f"{ROOMS[module]}.md") == public


def test_what_a_room_leaves_out_is_at_the_top() -> None:
    top = named(API / "index.md")
    left_out = set()
    for page in API.glob("*.md"):
        for names in re.findall(r":exclude-members: (.*)", page.read_text(encoding="utf-8")):
            left_out |= set(names.split(", "))
    assert left_out == top - {"cpu_capability"}
