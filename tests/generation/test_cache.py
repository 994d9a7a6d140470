"""The cache that grows in place, beside that of transformers."""

from __future__ import annotations

import pytest
import torch
from tiny import llama
from transformers import DynamicCache

from mobizo_kernels.generation import cache as module


@pytest.mark.parametrize("room", [1, 3, 32])
def test_states_are_those_of_a_dynamic_cache(
    room: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOM", room)
    config = llama().config
    ours, theirs = module.growing_cache(config), DynamicCache(config=config)
    assert all(isinstance(layer, module.GrowingLayer) for layer in ours.layers)
    rows = 3
    for count in (4, 1, 1, 2, 0, 5, 1, 1):
        if not count:  # other rows from here on, and more of them
            for cache in (ours, theirs):
                cache.batch_select_indices(torch.tensor([2, 0, 0, 1]))
            rows = 4
            continue
        for layer in range(len(ours.layers)):
            key, value = torch.randn(2, rows, 2, count, 8, generator=rng)
            found, expected = ours.update(key, value, layer), theirs.update(key, value, layer)
            assert all(map(torch.equal, found, expected))
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_buffers_are_not_made_anew_for_a_token(rng: torch.Generator) -> None:
    cache = module.growing_cache(llama().config)
    pointers = set()
    for count in (5, *[1] * module.ROOM):
        key, value = torch.randn(2, 3, 2, count, 8, generator=rng)
        pointers.add(cache.update(key, value, 0)[0].data_ptr())
    assert len(pointers) == 1
