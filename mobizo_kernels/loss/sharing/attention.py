"""Attention of many groups of rows over keys and values that all groups share.

transformers' decoders call the attention that their configuration names. This one finds at its module what
the forward is about: the tokens of the B rows, and the keys and values of the tokens before them, if any. An
attribute, not an entry of a dictionary: torch.compile then makes one graph for the layers of a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mobizo_kernels.loss.compiled import mark_dynamic
from mobizo_kernels.loss.sharing.states import KeysAndValues

NAME = "mobizo_shared"
_ATTRIBUTE = "mobizo_pass"


@dataclass
class AttentionPass:
    """One forward of a decoder over n tokens of B rows, or of G copies of them, group after group.

    Attributes:
        positions: of the tokens in their texts, int64 [B, n].
        seen: bool [B, n], False where a token is padding; None if none is.
        prefix_positions: of the tokens before, int64 [B, P]; None if there are none.
        prefix_seen: bool [B, P], or None as `seen`.
    """

    positions: torch.Tensor
    seen: torch.Tensor | None = None
    prefix_positions: torch.Tensor | None = None
    prefix_seen: torch.Tensor | None = None
    _masks: dict[Any, torch.Tensor | None] = field(default_factory=dict)

    def own_mask(self, copies: int, window: int | None) -> torch.Tensor | None:
        """Which of their own tokens the tokens see, bool [copies * B, 1, n, n]; None for all before."""
        return self._kept(self._own_mask, copies, window)

    def prefix_mask(self, window: int | None) -> torch.Tensor | None:
        """What each token sees of the prefix, bool [B, n, P]; None if that is everything."""
        return self._kept(self._prefix_mask, window)

    def _kept(self, make: Callable[..., torch.Tensor | None], *args: Any) -> torch.Tensor | None:
        """A mask, which all layers use. A compiled graph makes its own, which costs it next to nothing."""
        if torch.compiler.is_compiling():
            return make(*args)
        key = (make.__name__, *args)
        if key not in self._masks:
            self._masks[key] = make(*args)
        return self._masks[key]

    def _own_mask(self, copies: int, window: int | None) -> torch.Tensor | None:
        width = self.positions.shape[1]
        if self.seen is None and (window is None or window >= width):
            return None
        device = self.positions.device
        visible = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        visible = visible & _within(self.positions, self.positions, window)
        if self.seen is not None:
            visible = visible & self.seen[:, None, :]
        # What sees nothing would turn into NaN: padding sees itself.
        visible = visible | torch.eye(width, dtype=torch.bool, device=device)
        return visible[:, None].repeat(copies, 1, 1, 1)

    def _prefix_mask(self, window: int | None) -> torch.Tensor | None:
        assert self.prefix_positions is not None
        visible = None
        if window is not None:
            visible = _within(self.positions, self.prefix_positions, window)
        if self.prefix_seen is not None:
            seen = self.prefix_seen[:, None, :].expand(-1, self.positions.shape[1], -1)
            visible = seen if visible is None else visible & seen
        return visible


@dataclass
class LayerPass:
    """What the attention of one layer has to know of a forward.

    Attributes:
        tokens: of the forward.
        prefix: keys and values [B, key-value heads, P, D] of the tokens before; None if there are none.
        copies: of any values, [G] where the rows are those of G groups: a size, which torch.compile knows to
            be one, where it would make a graph for each value of a number. None for one group.
        record: put the keys and values of this forward's tokens into `recorded`.
        recorded: keys and values [rows, key-value heads, n, D].
        last: end the forward when they are there, by :class:`Reached`.
    """

    tokens: AttentionPass
    prefix: KeysAndValues | None = None
    copies: torch.Tensor | None = None
    record: bool = False
    recorded: KeysAndValues | None = None
    last: bool = False

    def mark_dynamic(self) -> None:
        """Tell torch.compile which sizes differ from batch to batch."""
        tokens = self.tokens
        for positions in (tokens.positions, tokens.seen, tokens.prefix_positions, tokens.prefix_seen):
            mark_dynamic(positions, 0, 1)
        for states in self.prefix or ():
            mark_dynamic(states, 0, 2)
        mark_dynamic(self.copies, 0)

    def groups(self, rows: int) -> int:
        """G, of so many rows in all."""
        groups = 1 if self.copies is None else self.copies.shape[0]
        torch._check(rows == groups * self.tokens.positions.shape[0])
        return groups


class Reached(Exception):
    """Ends a forward that has brought what it was made for."""


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
    now: LayerPass = getattr(module, _ATTRIBUTE)
    if now.record:
        now.recorded = (key, value)
        if now.last:
            raise Reached
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if now.prefix is not None:
        out = _over_prefix(now, query, key, value, scale, dropout, sliding_window, softcap)
    else:
        mask = now.tokens.own_mask(query.shape[0] // now.tokens.positions.shape[0], sliding_window)
        out = _plain(query, key, value, mask, scale, dropout, softcap).transpose(1, 2).contiguous()
    return out, None


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
    now: LayerPass,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One softmax over the prefix of the row and the row's own tokens, in float32; [rows, n, heads, D].

    All queries that share a key-value head of a row, those of its groups too, stand below each other: the
    keys of the prefix are read once and never repeated.
    """
    (rows, heads, width, depth), dtype = query.shape, query.dtype
    prefix_key, prefix_value = (tensor.float() for tensor in now.prefix or ())
    batch, kv_heads, length, _ = prefix_key.shape
    groups, copies = now.groups(rows), heads // kv_heads
    query = query.reshape(groups, batch, kv_heads, copies, width, depth)
    key = key.reshape(groups, batch, kv_heads, width, depth).float() * scale
    value = value.reshape(groups, batch, kv_heads, width, depth).float()
    own = _own_scores(query, key)
    below = _as_float(query.permute(1, 2, 0, 3, 4, 5)).reshape(batch * kv_heads, -1, depth)
    before = below @ (prefix_key * scale).reshape(batch * kv_heads, length, depth).transpose(1, 2)
    before = before.reshape(batch, kv_heads, groups, copies, width, length)
    own, before = _capped(own, softcap), _capped(before, softcap)

    own_mask = now.tokens.own_mask(1, window)
    if own_mask is None:
        own_mask = torch.ones(width, width, dtype=torch.bool, device=own.device).tril()
    else:
        own_mask = own_mask[:, :, None]
    own.masked_fill_(~own_mask, float("-inf"))
    prefix_mask = now.tokens.prefix_mask(window)
    if prefix_mask is not None:
        before.masked_fill_(~prefix_mask[:, None, None, None], float("-inf"))

    # Every token sees itself at least, so the maximum is finite.
    own = own.permute(1, 2, 0, 3, 4, 5)
    largest = torch.maximum(before.amax(dim=-1, keepdim=True), own.amax(dim=-1, keepdim=True))
    before, own = before.sub_(largest).exp_(), own.sub_(largest).exp_()
    total = before.sum(dim=-1, keepdim=True) + own.sum(dim=-1, keepdim=True)
    before, own = F.dropout(before, dropout), F.dropout(own, dropout)
    prefix_value = prefix_value.reshape(batch * kv_heads, length, depth)
    mixed = before.reshape(batch * kv_heads, -1, length) @ prefix_value
    mixed = mixed.reshape(batch, kv_heads, groups, copies, width, depth).permute(2, 0, 1, 3, 4, 5)
    mixed += _own_values(own.permute(2, 0, 1, 3, 4, 5), value)
    mixed /= total.permute(2, 0, 1, 3, 4, 5)
    return mixed.to(dtype).permute(0, 1, 4, 2, 3, 5).reshape(rows, width, heads, depth)


def _own_scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """query [G, B, h, copies, n, D] and key, float32 [G, B, h, n, D] -> float32 [G, B, h, copies, n, n]."""
    if _fused(key):
        return (query.float()[..., None, :] * key[:, :, :, None, None]).sum(dim=-1)
    *heads, copies, width, depth = query.shape
    key = key.reshape(-1, width, depth)
    scores = _as_float(query).reshape(-1, copies * width, depth) @ key.transpose(1, 2)
    return scores.reshape(*heads, copies, width, width)


def _own_values(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """weights [G, B, h, copies, n, n] and value [G, B, h, n, D], float32 -> [G, B, h, copies, n, D]."""
    if _fused(value):
        return (weights[..., None] * value[:, :, :, None, None]).sum(dim=-2)
    *heads, copies, width, _ = weights.shape
    mixed = weights.reshape(-1, copies * width, width) @ value.reshape(-1, width, value.shape[-1])
    return mixed.reshape(*heads, copies, width, -1)


def _fused(keys: torch.Tensor) -> bool:
    """Whether a compiler makes the products with so few keys [..., n, D] along with what is around them."""
    return torch.compiler.is_compiling() and keys.shape[-2] <= 4


def _as_float(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous and float32, in one pass."""
    return tensor.to(torch.float32, memory_format=torch.contiguous_format)


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


@contextmanager
def attending(configs: Sequence[Any], passes: Mapping[nn.Module, LayerPass]) -> Iterator[None]:
    """Let a decoder attend by :func:`shared_attention`.

    Args:
        configs: of all its modules.
        passes: what each of its attention modules has to know.
    """
    before = [config._attn_implementation for config in configs]
    try:
        for module, state in passes.items():
            setattr(module, _ATTRIBUTE, state)
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        for module in passes:
            if hasattr(module, _ATTRIBUTE):
                delattr(module, _ATTRIBUTE)


ALL_ATTENTION_FUNCTIONS.register(NAME, shared_attention)
