"""Fixtures of every test: random numbers that depend on the test alone, and the thread count given back."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings

# Examples are the same in every run, and a busy machine is no failure.
settings.register_profile("mobizo", deadline=None, derandomize=True)
settings.load_profile("mobizo")

# A package built without the ExecuTorch parts is tested without them.
collect_ignore_glob = [] if find_spec("executorch") else ["executorch/*"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--run-slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: needs --run-slow"))


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
