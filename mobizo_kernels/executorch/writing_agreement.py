"""The check of the method that writes, before anything is lowered: its are the logits of the model."""

from __future__ import annotations

from typing import Any

import torch

from mobizo_kernels.executorch.agreement import DEEPER, tolerance
from mobizo_kernels.executorch.architecture import cannot_be_exported
from mobizo_kernels.executorch.graph import TrainingGraph
from mobizo_kernels.executorch.writing import NextLogits
from mobizo_kernels.lora import adapter_of, held_head
from mobizo_kernels.loss import LabelledLoss

_ONE_BY_ONE = 2  # tokens that go through the method alone
_AFTER = 4  # tokens from the invocation on that go through it together


class WritingAgreement:
    """A random text as long as the context, and the logits that the model itself has at its end.

    Args:
        loss: of the wrapped model; its values are computed at once.
        context: N.
        chunk: most tokens that go through the method at once.
    """

    def __init__(self, loss: LabelledLoss, context: int, chunk: int) -> None:
        model = loss.model
        self._chunk = chunk
        rng = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(model.config.get_text_config().vocab_size, (context,), generator=rng)
        self._start = 0
        if invocation := adapter_of(model).config.alora_invocation_tokens:
            self._start = max(0, context - _ONE_BY_ONE - _AFTER - len(invocation))
            there = self._tokens[self._start : self._start + len(invocation)]
            there.copy_(torch.tensor(invocation)[: len(there)])
        states = model.base_model(input_ids=self._tokens[None], use_cache=False).last_hidden_state
        head, held = model.get_output_embeddings(), held_head(model)
        if held is not None:
            head = held.base_layer
        self._logits = loss.head.finished(head(states[:, -_ONE_BY_ONE - 1 :]))[0]

    def check(self, graph: TrainingGraph, *, rounded: bool) -> None:
        """Raise ValueError unless a graph that writes has the same logits, up to their rounding.

        Args:
            graph: of the program.
            rounded: the inputs of linears are rounded to 8 bits.
        """
        count = len(self._tokens) - _ONE_BY_ONE
        try:
            for start in range(0, count, self._chunk):
                end = min(start + self._chunk, count)
                last = self._run(graph, start, end)
            found = [last, *(self._run(graph, i, i + 1) for i in range(count, count + _ONE_BY_ONE))]
        except Exception as error:  # whatever a decoder of another build makes of the forms
            raise cannot_be_exported(graph.model, error) from error
        off = (torch.cat(found) - self._logits).norm() / self._logits.norm()
        if not off.item() <= DEEPER * tolerance(rounded):
            count = len(self._tokens)
            reason = f"its logits after {count} tokens with a key-value cache are off by {off:.1e}"
            raise cannot_be_exported(graph.model, reason)

    def _run(self, graph: TrainingGraph, start: int, end: int) -> torch.Tensor:
        """The logits [1, V] that follow the tokens from `start` to `end`."""
        positions = torch.arange(start, end)
        rest: list[torch.Tensor] = []
        if graph.tail_length is not None:
            rest.append((positions >= self._start).float()[None, :, None])
        rest += graph.adapter_inputs()
        batch = (self._tokens[None, start:end], positions[None], torch.arange(end))
        found: Any = NextLogits(graph)(*batch, *rest)
        logits: torch.Tensor = found[0] if graph.readout else found
        return logits
