"""A key-value cache that grows in place.

That of transformers makes every tensor anew for each token. Of many rows these are large, and none fits where
the one before it was, so that a process would end with several times the memory of its cache.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 32
"""Tokens that there is room for when a buffer is full."""


class GrowingLayer(DynamicLayer):
    """Keys and values [rows, heads, tokens, D] of one layer, the beginning of buffers with room for more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffers: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states [rows, heads, n, D] of n tokens, and give those of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._longer("keys", self.keys, key_states)
        self.values = self._longer("values", self.values, value_states)
        return self.keys, self.values

    def _longer(self, name: str, states: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
        length = 0 if states is None or not states.numel() else states.shape[-2]
        buffer, whole = self._buffers.get(name), length + more.shape[-2]
        # Whoever selects rows or crops puts other tensors in the place of ours.
        mine = buffer is not None and states is not None and states.data_ptr() == buffer.data_ptr()
        if buffer is None or not mine or buffer.shape[-2] < whole or len(buffer) != len(more):
            buffer = more.new_empty(*more.shape[:-2], whole + ROOM, more.shape[-1])
            if length:
                assert states is not None
                buffer[..., :length, :] = states
            self._buffers[name] = buffer
        buffer[..., length:whole, :] = more
        return buffer[..., :whole, :]


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """The cache that a model of this configuration takes; layers of other kinds are those of transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
