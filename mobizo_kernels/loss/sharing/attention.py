"""Attention of many groups of rows over keys and values that all groups share.

transformers' decoders call the attention that their configuration names. This one finds in `current` what the
forward is about: the tokens of the B rows, and the keys and values of the tokens before them, if any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mobizo_kernels.loss.sharing.states import KeysAndValues

NAME = "mobizo_shared"


@dataclass
class AttentionPass:
    """One forward of a decoder over n tokens of B rows, or of G copies of them, group after group.

    Attributes:
        positions: of the tokens in their texts, int64 [B, n].
        seen: bool [B, n], False where a token is padding; None if none is.
        prefix: keys and values [B, key-value heads, P, D] of the tokens before, by layer; empty if there are
            none.
        prefix_positions: int64 [B, P].
        prefix_seen: bool [B, P], or None as `seen`.
        record: gets the keys and values of this forward's tokens by layer; None to keep none.
    """

    positions: torch.Tensor
    seen: torch.Tensor | None = None
    prefix: dict[int, KeysAndValues] = field(default_factory=dict)
    prefix_positions: torch.Tensor | None = None
    prefix_seen: torch.Tensor | None = None
    record: dict[int, KeysAndValues] | None = None
    _masks: dict[Any, torch.Tensor | None] = field(default_factory=dict)

    def own_mask(self, copies: int, window: int | None) -> torch.Tensor | None:
        """Which of their own tokens the tokens see, bool [copies * B, 1, n, n]; None for all before."""
        key = ("own", copies, window)
        if key not in self._masks:
            width = self.positions.shape[1]
            if self.seen is None and (window is None or window >= width):
                self._masks[key] = None
            else:
                device = self.positions.device
                visible = torch.ones(width, width, dtype=torch.bool, device=device).tril()
                visible = visible & _within(self.positions, self.positions, window)
                if self.seen is not None:
                    visible = visible & self.seen[:, None, :]
                # What sees nothing would turn into NaN: padding sees itself.
                visible = visible | torch.eye(width, dtype=torch.bool, device=device)
                self._masks[key] = visible[:, None].repeat(copies, 1, 1, 1)
        return self._masks[key]

    def prefix_mask(self, window: int | None) -> torch.Tensor | None:
        """What each token sees of the prefix, bool [B, n, P]; None if that is everything."""
        key = ("prefix", window)
        if key not in self._masks:
            assert self.prefix_positions is not None
            visible = None
            if window is not None:
                visible = _within(self.positions, self.prefix_positions, window)
            if self.prefix_seen is not None:
                seen = self.prefix_seen[:, None, :].expand(-1, self.positions.shape[1], -1)
                visible = seen if visible is None else visible & seen
            self._masks[key] = visible
        return self._masks[key]


current: ContextVar[AttentionPass] = ContextVar("current")


def _within(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    """bool [B, n, m]: the key is among the `window` last tokens that the query may see."""
    distance = queries[:, :, None] - keys[:, None, :]
    return distance < window if window is not None else torch.ones_like(distance, dtype=torch.bool)


def shared_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """query [rows, heads, n, D], key and value [rows, key-value heads, n, D] -> [rows, n, heads, D].

    Raises:
        ValueError: if the model asks for something else than softmax attention.
    """
    unknown = [name for name in ("s_aux", "head_mask", "position_bias") if options.get(name) is not None]
    if attention_mask is not None or unknown:
        raise ValueError(f"attention with {', '.join(unknown) or 'a mask of its own'} cannot be shared")
    now, layer = current.get(), int(module.layer_idx)  # type: ignore[arg-type]
    if now.record is not None:
        now.record[layer] = (key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer in now.prefix:
        out = _over_prefix(now, layer, query, key, value, scale, dropout, sliding_window, softcap)
    else:
        mask = now.own_mask(query.shape[0] // now.positions.shape[0], sliding_window)
        out = _plain(query, key, value, mask, scale, dropout, softcap)
    return out.transpose(1, 2).contiguous(), None


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    dropout: float,
    softcap: float | None,
) -> torch.Tensor:
    copies = query.shape[1] // key.shape[1]
    if copies > 1:
        key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout, is_causal=mask is None, scale=scale
        )
    scores = _capped(query.float() @ key.float().transpose(2, 3) * scale, softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = F.dropout(scores.masked_fill(~mask, float("-inf")).softmax(dim=-1), dropout)
    return (weights @ value.float()).to(query.dtype)


def _over_prefix(
    now: AttentionPass,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One softmax over the prefix of the row and the row's own tokens, in float32.

    All queries that share a key-value head of a row, those of its groups too, stand below each other: the
    keys of the prefix are read once and never repeated.
    """
    rows, heads, width, depth = query.shape
    prefix_key, prefix_value = now.prefix[layer]
    batch, kv_heads, length, _ = prefix_key.shape
    groups, copies = rows // batch, heads // kv_heads
    q = query.float() * scale
    own_q = q.reshape(rows * kv_heads, copies * width, depth)
    own = own_q @ key.float().reshape(rows * kv_heads, width, depth).transpose(1, 2)
    by_row = (groups, batch, kv_heads, copies, width)
    own = own.view(*by_row, width)
    before_q = q.view(*by_row, depth).permute(1, 2, 0, 3, 4, 5)
    before_q = before_q.reshape(batch * kv_heads, groups * copies * width, depth)
    before = before_q @ prefix_key.float().reshape(batch * kv_heads, length, depth).transpose(1, 2)
    before = before.view(batch, kv_heads, groups, copies, width, length)
    if softcap is not None:
        own, before = _capped(own, softcap), _capped(before, softcap)

    own_mask = now.own_mask(1, window)
    if own_mask is None:
        causal = torch.ones(width, width, dtype=torch.bool, device=q.device).tril()
        own = own.masked_fill(~causal, float("-inf"))
    else:
        own = own.masked_fill(~own_mask[:, None], float("-inf"))
    prefix_mask = now.prefix_mask(window)
    if prefix_mask is not None:
        before = before.masked_fill(~prefix_mask[:, None, None, None], float("-inf"))

    # Every token sees itself at least, so the maximum is finite.
    own = own.permute(1, 2, 0, 3, 4, 5)
    weights = F.dropout(torch.cat([before, own], dim=-1).softmax(dim=-1), dropout)
    before, own = weights.split([length, width], dim=-1)
    mixed = before.reshape(batch * kv_heads, groups * copies * width, length) @ prefix_value.float().reshape(
        batch * kv_heads, length, depth
    )
    mixed = mixed.view(batch, kv_heads, groups, copies, width, depth).permute(2, 0, 1, 3, 4, 5)
    own = own.permute(2, 0, 1, 3, 4, 5).reshape(rows * kv_heads, copies * width, width)
    own = own @ value.float().reshape(rows * kv_heads, width, depth)
    return (mixed.reshape(rows, heads, width, depth) + own.view(rows, heads, width, depth)).to(query.dtype)


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


@contextmanager
def attending(configs: list[Any], state: AttentionPass) -> Iterator[None]:
    """Let the decoder whose modules have these configurations attend by :func:`shared_attention`."""
    before = [config._attn_implementation for config in configs]
    token = current.set(state)
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        current.reset(token)


ALL_ATTENTION_FUNCTIONS.register(NAME, shared_attention)
