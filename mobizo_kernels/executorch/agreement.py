"""The check before anything is lowered: a program's graph has the losses of the model that it was made of."""

from __future__ import annotations

import torch

from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.executorch.architecture import cannot_be_exported
from mobizo_kernels.executorch.graph import TrainingGraph
from mobizo_kernels.lora import adapter_of, invocation_starts
from mobizo_kernels.loss import LabelledLoss

_LENGTH = 12  # most tokens of a row of a step
DEEPER = 4
"""Times the tolerance of losses: that of logits after many tokens."""

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def tolerance(rounded: bool) -> float:
    """How far losses may be off; `rounded`: the inputs of linears are, to 8 bits."""
    return 3e-2 if rounded else 1e-4


class Agreement:
    """Random rows, and what the model itself makes of them in eager mode.

    These are the losses of a step over short rows, and the logits of one row of the greatest length: some
    models have windows or frequencies that short rows do not reach.

    Args:
        loss: of the wrapped model; its values are computed at once.
        rows: B.
        groups: G.
        distribution: of the directions.
        max_length: most tokens of a row.
        tail_length: n of the program, None without invocation tokens.
    """

    def __init__(
        self,
        loss: LabelledLoss,
        *,
        rows: int,
        groups: int,
        distribution: str,
        max_length: int,
        tail_length: int | None,
    ) -> None:
        adapter = adapter_of(loss.model)
        self._groups, self._tail_length = groups, tail_length
        self._invocation = adapter.config.alora_invocation_tokens
        self._rows = self._random_rows(rows, min(max_length, _LENGTH + (tail_length or 0)), loss)
        self._longest = self._random_rows(1, max_length, loss)
        with adapter.directions.use(*self._directions(), distribution):
            batch = collate([EncodedExample(row, -1, 1) for row in self._rows], 0)
            self._losses = loss(batch, groups)
        self._logits = loss.logits(collate([EncodedExample(row, -1, 1) for row in self._longest], 0))

    def check(self, graph: TrainingGraph, *, rounded: bool) -> None:
        """Raise ValueError unless the values of a graph are those of the model, up to their rounding.

        Args:
            graph: of the program.
            rounded: the inputs of linears are rounded to 8 bits. A change in the last bit moves some of them
                to a neighbour, and the more groups there are the further the loss of one of them is off: they
                are taken together.
        """
        most = tolerance(rounded)
        longest = _arguments(self._longest, self._invocation, self._tail_length)
        try:
            arguments = _arguments(self._rows, self._invocation, self._tail_length)
            head = graph.head_input()
            losses = graph.train_step(arguments, graph.inputs(*self._directions()), head)
            found = graph.evaluate(longest[:3], graph.adapter_inputs(), head)
            logits = (found[0] if graph.readout else found)[0]
        except Exception as error:  # whatever a decoder of another build makes of the forms
            raise cannot_be_exported(graph.model, error) from error
        off = (losses - self._losses).abs() / (1 + self._losses.abs())
        worst = (off.square().mean().sqrt() if rounded else off.max()).item()
        if not worst <= most:
            raise cannot_be_exported(graph.model, f"its losses are off by {worst:.1e}")
        # Taken together: in a deep model of few bits single logits are off by far more.
        off = (logits - self._logits).norm() / self._logits.norm()
        if not off.item() <= DEEPER * most:
            length = len(self._longest[0]) - 1
            raise cannot_be_exported(graph.model, f"its logits after {length} tokens are off by {off:.1e}")

    def _directions(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(self._groups), torch.linspace(-0.02, 0.02, self._groups)

    def _random_rows(self, rows: int, length: int, loss: LabelledLoss) -> list[list[int]]:
        """Rows of different lengths, the last token to be predicted; tails of different lengths, too."""
        rng = torch.Generator().manual_seed(0)
        vocabulary = loss.model.config.get_text_config().vocab_size
        made = []
        for row in range(rows):
            tokens = torch.randint(vocabulary, (length - row % 2 * length // 3 + 1,), generator=rng)
            if self._invocation is not None and self._tail_length is not None:
                more = row % (self._tail_length - len(self._invocation) + 1)
                before = tokens[: max(0, len(tokens) - 1 - self._tail_length)].tolist()
                after = tokens[: more + 1].tolist()
                tokens = torch.tensor(before + self._invocation + after)
            if loss.candidates is not None:
                tokens[-1] = loss.candidates[row % len(loss.candidates)]
            made.append(tokens.tolist())
        return made


def _arguments(rows: list[list[int]], invocation: list[int] | None, tail_length: int | None) -> Arguments:
    """Rows as `train_step` takes them, the last token of each to be predicted."""
    inputs, tail = [torch.tensor(row[:-1]) for row in rows], tail_length or 0
    before = [len(row) for row in inputs]
    if invocation is not None:
        before = [int(invocation_starts(row[None], invocation)) for row in inputs]
    width = max(before) + tail
    ids = torch.zeros(len(inputs), width, dtype=torch.int64)
    mask, positions = torch.zeros_like(ids), torch.zeros(len(inputs), 1, dtype=torch.int64)
    for row, (tokens, start) in enumerate(zip(inputs, before, strict=True)):
        first = width - tail - start
        ids[row, first : first + len(tokens)], mask[row, first : first + len(tokens)] = tokens, 1
        positions[row] = first + len(tokens) - 1
    return ids, mask, positions, torch.tensor([row[-1:] for row in rows])
