"""The method of a program that writes: tokens in, the logits of the next one out, with a key-value cache in
buffers of the program, over the weights and the adapter that the other methods train.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mobizo_kernels.executorch.graph import TrainingGraph
from mobizo_kernels.executorch.quantization import quantize_linear
from mobizo_kernels.executorch.training_methods import Method
from mobizo_kernels.executorch.xnnpack_rewrites import BLOCKED, UNKNOWN
from mobizo_kernels.lora import MPLoRALinear
from mobizo_kernels.loss.label_head import after_head

WRITING = "next_logits"
"""The method of this module."""
_ATTENTION = "mobizo_cached"


class KeyValueCache(nn.Module):
    """Keys and values of one sequence, [N, groups, D] for each layer: token after token, so that those of the
    tokens so far are one piece.

    Args:
        context: N, most tokens.
        kept: keys and values [groups, T, D] of any forward, by their layers.
    """

    def __init__(self, context: int, kept: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        for layer, states in kept.items():
            for name, (groups, _, width) in zip(("keys", "values"), (x.shape for x in states), strict=True):
                self.register_buffer(f"{name}_{layer}", torch.zeros(context, groups, width))

    def extend(
        self, layer: int, positions: torch.Tensor, key: torch.Tensor, value: torch.Tensor, length: int
    ) -> list[torch.Tensor]:
        """Put key and value [T, groups, D] at positions int64 [T]; the first `length` of both kinds."""
        found = []
        for name, states in (("keys", key), ("values", value)):
            buffer = self.get_buffer(f"{name}_{layer}")
            buffer.index_put_((positions,), states)
            found.append(buffer[:length])
        return found


class CachedAttention:
    """Softmax attention of the tokens of one sequence to those in a cache, which theirs join.

    As in :class:`mobizo_kernels.executorch.xnnpack_rewrites.GroupedAttention` the query heads of one
    key-value head stand below each other, and neither keys nor values are copied for them.
    """

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache
        self._positions = self._key_positions = torch.empty(0)
        self._mask: torch.Tensor | None = None

    @contextmanager
    def installed(
        self, model: PreTrainedModel, positions: torch.Tensor, key_positions: torch.Tensor
    ) -> Iterator[torch.Tensor]:
        """Let the decoder use it for the forward in this block, which is to be given what this yields as its
        mask, 4-D.

        Args:
            model: of the decoder.
            positions: of the tokens of the forward, int64 [T].
            key_positions: 0 to S - 1, int64 [S], where S - 1 is the position of the last token.
        """
        self._positions, self._key_positions, self._mask = positions, key_positions, None
        before = model.config._attn_implementation
        ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, self)
        model.set_attn_implementation(_ATTENTION)
        try:
            yield torch.zeros(1, 1, 1, 1)
        finally:
            model.set_attn_implementation(before)

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
        """query [1, heads, T, D], key and value [1, groups, T, D] -> [1, T, heads, D].

        Raises:
            ValueError: if the model asks for something else than softmax attention.
        """
        if unknown := [name for name in UNKNOWN if options.get(name) is not None]:
            raise ValueError(f"attention with {unknown[0]} is not known here")
        _, heads, length, width = query.shape
        groups = key.shape[1]
        repeats = heads // groups
        keys, values = self.cache.extend(
            int(module.layer_idx),  # type: ignore[arg-type]
            self._positions,
            key.transpose(1, 2).contiguous().view(length, groups, width),
            value.transpose(1, 2).contiguous().view(length, groups, value.shape[-1]),
            self._key_positions.shape[0],
        )
        query = query * (width**-0.5 if scaling is None else scaling)
        scores = torch.bmm(query.contiguous().view(groups, repeats * length, width), keys.permute(1, 2, 0))
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores + self._causal(repeats)
        mixed = torch.bmm(F.softmax(scores, dim=-1), values.transpose(0, 1))
        mixed = mixed.unflatten(1, (repeats, length)).view(1, heads, length, value.shape[-1])
        return mixed.transpose(1, 2).contiguous(), None

    def _causal(self, repeats: int) -> torch.Tensor:
        """What is added to the scores, [1, heads per group * T, S]."""
        if self._mask is None:
            later = self._key_positions[None, :] > self._positions[:, None]
            self._mask = torch.where(later, BLOCKED, 0.0).repeat(repeats, 1)[None]
        return self._mask


class Writer(nn.Module):
    """What a graph needs to write, beside what it trains with; a graph becomes one that writes by
    `graph.writer`.

    Args:
        graph: of the program, with its decoder in the forms of XNNPACK.
        context: N, most tokens of a prompt and its answer.
        quantization: of the LM head, where the graph has nothing but its rows of the candidates.
    """

    def __init__(self, graph: TrainingGraph, context: int, quantization: str) -> None:
        super().__init__()
        graph.use(graph.adapter_inputs())
        probe = torch.ones(1, 3, dtype=torch.int64)
        graph.decoded(probe, torch.arange(3)[None], graph.attention.start(probe != 0), 1)
        self.cache = KeyValueCache(context, graph.attention.kept)
        self.attention = CachedAttention(self.cache)
        head: Any = graph.model.get_output_embeddings()
        if isinstance(head, MPLoRALinear):  # the trainer adds a readout
            head = head.base_layer
        self.own_head = None
        if graph.rows is not None and quantization != "none":
            self.own_head = quantize_linear(copy.deepcopy(head), quantization)
        elif getattr(head, "weight", None) is getattr(graph.model.get_input_embeddings(), "weight", head):
            # A delegate packs a weight of its own once, and one that others read in each call.
            self.own_head = copy.deepcopy(head)
        # Not as a module of this one: the graph has it by its name in the model.
        self.heads = [head if self.own_head is None else self.own_head]


def _writer(graph: TrainingGraph) -> Writer:
    assert isinstance(graph.writer, Writer)
    return graph.writer


class NextLogits(Method):
    """The logits [1, V] that follow the last of T tokens, which join the cache behind those that are in it;
    where there can be a readout, the states [1, H + C], too: what the head is given there, and gives for the
    candidates, before the model scales or caps it.
    """

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        key_positions: torch.Tensor,
        *rest: torch.Tensor,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        program, directions = self.program, self.program.directions
        active = None
        if program.tail_length is not None:
            active, *rest = rest  # type: ignore[assignment]
        program.use(rest)
        program.widening.start(1, 1)
        directions.active = active
        try:
            with _writer(program).attention.installed(program.model, positions[0], key_positions) as mask:
                states: torch.Tensor = program.model.base_model(
                    input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False
                ).last_hidden_state
            # An adapter of the head acts where the last token's do.
            directions.active = None if active is None else active[:, -1:]
            return self.logits(states[:, -1:])
        finally:
            directions.active = None

    def logits(self, states: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """states [1, 1, H] -> what the method returns."""
        program = self.program
        (head,) = _writer(program).heads
        outputs = head(states)
        logits = after_head(program.model, outputs).view(1, -1)
        if not program.readout:
            return logits
        words = outputs.index_select(-1, program.candidates)
        return logits, torch.cat([states, words], dim=-1).view(1, -1)
