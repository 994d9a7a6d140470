"""Fixtures of every test: random numbers that depend on the test alone, and the thread count given back. And
the marks that a test has by where it lies.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Examples are the same in every run, and a busy machine is no failure.
settings.register_profile("mobizo", deadline=None, derandomize=True)
# Other examples in each run, and many: `make properties`.
settings.register_profile("long", deadline=None, max_examples=2000)
settings.load_profile("mobizo")

# A package built without the ExecuTorch parts is tested without them.
collect_ignore_glob = [] if find_spec("executorch") else ["executorch/*"]


SKIPPED = ("slow", "big")  # marks of tests that have to be asked for


def pytest_addoption(parser: pytest.Parser) -> None:
    for mark in SKIPPED:
        parser.addoption(f"--run-{mark}", action="store_true", help=f"run the tests marked {mark}, too")


TESTS = Path(__file__).parent
MARKS = {"executorch": "executorch", "triton": "gpu", "test_binaries.py": "native"}  # by place
# Whose tests take seconds each: they start first, or a core would have them left when the others are done.
SLOWEST = ("triton", "benchmarks", "executorch", "cli")


def pytest_configure(config: pytest.Config) -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # xdist's order, by the number of tests, has files of few last


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(TESTS).parts[0]
        if mark := MARKS.get(place):
            item.add_marker(mark)
        for mark in SKIPPED:
            if mark in item.keywords and not config.getoption(f"--run-{mark}"):
                item.add_marker(pytest.mark.skip(reason=f"{mark}: needs --run-{mark}"))
    files = Counter(item.path for item in items)
    items.sort(key=lambda item: (_rank(item), -files[item.path], item.path))  # those of a file stay in order


def _rank(item: pytest.Item) -> int:
    place = item.path.relative_to(TESTS).parts[0]
    return SLOWEST.index(place) if place in SLOWEST else len(SLOWEST)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """A generator seeded by the test's own id: running one test alone draws what the whole suite draws."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores torch's number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
