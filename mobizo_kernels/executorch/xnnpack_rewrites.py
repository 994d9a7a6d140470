"""Forms of a transformer's parts that XNNPACK takes whole, so that no layer is cut into dozens of delegates.

Each computes what the original computes, up to float32 rounding. A part that is not known is left as it is:
the program is then slower, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_ATTENTION = "mobizo_grouped"
UNKNOWN = ("s_aux", "head_mask", "position_bias")  # options of transformers' attention that change its value
BLOCKED = torch.finfo(torch.float32).min / 2  # twice it is still finite: a row that sees nothing is no NaN


class LinearRMSNorm(nn.Module):
    """Root-mean-square norm whose mean is a product with a constant row: XNNPACK has no mean of one axis.

    Args:
        gain: its factor for each feature, [H].
        epsilon: added to the mean of squares.
    """

    ones: torch.Tensor

    def __init__(self, gain: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.gain, self.epsilon = nn.Parameter(gain.detach().clone(), requires_grad=False), epsilon
        self.register_buffer("ones", torch.full((1, len(gain)), 1.0 / len(gain)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., H] -> the same shape."""
        mean_square = F.linear(x * x, self.ones)
        return self.gain * (x * torch.rsqrt(mean_square + self.epsilon))


def replace_norms(model: nn.Module) -> None:
    """Put :class:`LinearRMSNorm` in the place of every module that turns out to compute it."""
    for name, module in list(model.named_modules()):
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if epsilon is None:
            epsilon = getattr(module, "eps", None)
        if not type(module).__name__.endswith("RMSNorm") or weight is None or not isinstance(epsilon, float):
            continue
        x = torch.linspace(-2.0, 3.0, 3 * weight.shape[0]).view(3, -1)
        for gain in (weight, 1.0 + weight):  # Gemma keeps the gain less one
            candidate = LinearRMSNorm(gain, epsilon)
            if torch.allclose(candidate(x), module(x), rtol=1e-5, atol=1e-6):
                model.set_submodule(name, candidate)
                break


class TanhGELU(nn.Module):
    """GELU by tanh, written out: XNNPACK takes the op for exact GELU, 5e-4 off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x of any shape -> the same shape."""
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))


def replace_gelus(model: nn.Module) -> None:
    """Put :class:`TanhGELU` in the place of every activation that turns out to compute it."""
    candidate, x = TanhGELU(), torch.linspace(-5.0, 5.0, 101)
    for name, module in list(model.named_modules()):
        if "gelu" in type(module).__name__.lower() and torch.allclose(candidate(x), module(x), atol=2e-6):
            model.set_submodule(name, candidate)


class GroupedAttention:
    """Softmax attention of grouped queries without copies of keys and values, as products of matrices.

    The query heads of one key-value head stand below each other, so that scores are
    [rows * key-value heads, heads per group * T, T] and no tensor but the scores has two dynamic sizes.

    A forward of whole sequences keeps its keys and values. One of tails goes on from them: the queries of all
    copies of a row stand below each other, too, and meet the row's keys once, then the copies' own.

    Args:
        model: a decoder of transformers.
        max_length: the longest sequence.
        name: of that length, in errors.

    Raises:
        ValueError: if the model does not let every token see all before it over that length.
    """

    def __init__(self, model: PreTrainedModel, max_length: int, name: str = "max_length") -> None:
        text = model.config.get_text_config()
        kinds = getattr(text, "layer_types", None) or ["sliding"]
        windowed = any("sliding" in kind or "chunked" in kind for kind in kinds)
        for kind in ("sliding_window", "attention_chunk_size"):
            window = getattr(text, kind, None) or 0  # Qwen2-MoE writes 0 where it has none
            if windowed and 0 < window < max_length:
                raise ValueError(f"{name} must be at most the model's {kind}, {window}, got {max_length}")
        self.applies = model._can_set_attn_implementation() and not getattr(text, "alibi", False)
        self._seen = self._before = torch.empty(0)
        self._masks: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._tail = False

    def start(self, seen: torch.Tensor) -> torch.Tensor:
        """Prepare a forward of whole sequences.

        Args:
            seen: which of their tokens are no padding, bool [B, T]. The rows may be copied on the way, group
                after group.

        Returns:
            What to give the decoder as its mask, 4-D.
        """
        self._seen, self._tail = seen, False
        self._masks, self._kept = {}, {}
        return torch.where(seen, 0.0, BLOCKED)[:, None, None, :]

    def go_on(self, seen: torch.Tensor) -> torch.Tensor:
        """Prepare the forward of n further tokens behind those that the last :meth:`start` was for.

        Args:
            seen: of the further tokens, bool [B, n], n a constant.

        Returns:
            What to give the decoder as its mask, 4-D.
        """
        self._before, self._seen, self._tail = self._seen, seen, True
        self._masks = {}
        return torch.where(seen, 0.0, BLOCKED)[:, None, None, :]

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """query [rows, heads, T, D], key and value [rows, groups, T, D] -> [rows, T, heads, D].

        Raises:
            ValueError: if the model asks for something else than softmax attention.
        """
        if unknown := [name for name in UNKNOWN if options.get(name) is not None]:
            raise ValueError(f"attention with {unknown[0]} is not known here")
        # While a graph is traced, modules are others from call to call: their layers tell them apart.
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        rows, heads, length, width = query.shape
        groups = key.shape[1]
        copies, repeats = rows // self._seen.shape[0], heads // groups
        query = query * (width**-0.5 if scaling is None else scaling)
        if self._tail:
            # [copies, B, groups, ...] -> [B * groups, copies, ...]
            q, k, v = (
                x.contiguous()
                .view(copies, -1, groups, x.shape[1] // groups, length, width)
                .permute(1, 2, 0, 3, 4, 5)
                .reshape(-1, copies * x.shape[1] // groups * length, width)
                for x in (query, key, value)
            )
            before = self._kept[layer]
            k, v = torch.cat([before[0], k], dim=1), torch.cat([before[1], v], dim=1)
        else:
            shared = rows * groups
            q = query.contiguous().view(shared, repeats * length, width)
            k, v = (x.contiguous().view(shared, length, width) for x in (key, value))
            self._kept[layer] = k, v
        scores = torch.bmm(q, k.transpose(1, 2))
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        for mask in self._masks_of(copies, repeats, groups):
            scores = scores + mask
        mixed = torch.bmm(F.softmax(scores, dim=-1), v)
        if self._tail:
            mixed = mixed.view(-1, groups, copies, repeats, length, width).permute(2, 0, 4, 1, 3, 5)
            return mixed.reshape(rows, length, heads, width), None
        mixed = mixed.unflatten(1, (repeats, length))
        return mixed.view(rows, heads, length, width).transpose(1, 2).contiguous(), None

    def _masks_of(self, copies: int, repeats: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added to the scores of so many copies of the rows: for the order of tokens, for padding."""
        key = copies, repeats, groups
        if key not in self._masks:
            self._masks[key] = self._tail_masks(*key) if self._tail else self._whole_masks(*key)
        return self._masks[key]

    def _whole_masks(self, copies: int, repeats: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, heads per group * T, T] and [copies * B * groups, 1, T]."""
        length = self._seen.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        causal = torch.where(later, BLOCKED, 0.0).repeat(repeats, 1)[None]
        return causal, _over_heads(self._seen, groups).repeat(copies, 1, 1)

    def _tail_masks(self, copies: int, repeats: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, copies * heads per group * n, P + copies * n] and [B * groups, 1, P + copies * n]."""
        length = self._seen.shape[1]
        starts = torch.arange(copies).view(-1, 1, 1).expand(-1, repeats, length) * length
        first, last = starts.reshape(-1, 1), (starts + torch.arange(length)).reshape(-1, 1)
        keys = torch.arange(copies * length)
        own = torch.where((keys >= first) & (keys <= last), 0.0, BLOCKED)
        before = torch.zeros(len(own), self._before.shape[1])
        seen = torch.cat([self._before, self._seen.repeat(1, copies)], dim=1)
        return torch.cat([before, own], dim=1)[None], _over_heads(seen, groups)

    @property
    def kept(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values [rows * groups, T, D] of the last forward of whole sequences, by their layers."""
        return self._kept

    @contextmanager
    def installed(self, model: PreTrainedModel) -> Iterator[None]:
        """Let the decoder use it; where it does not apply, transformers' own eager attention."""
        before = model.config._attn_implementation
        if self.applies:
            ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, self)
        model.set_attn_implementation(_ATTENTION if self.applies else "eager")
        try:
            yield
        finally:
            model.set_attn_implementation(before)


def _over_heads(seen: torch.Tensor, groups: int) -> torch.Tensor:
    """bool [rows, T] -> [rows * groups, 1, T], 0 or `BLOCKED`."""
    rows, length = seen.shape
    padding = torch.where(seen, 0.0, BLOCKED)[:, None, :]
    return padding.repeat(1, groups, 1).reshape(rows * groups, 1, length)
