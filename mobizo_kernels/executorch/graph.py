"""The graph of a training program: a wrapped model taken apart into what the program's methods need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.executorch.traced_linear import TracedDirections, TracedLinear
from mobizo_kernels.executorch.widening import Widening
from mobizo_kernels.executorch.xnnpack_rewrites import BLOCKED, GroupedAttention
from mobizo_kernels.lora import MPLoRALinear, adapter_of, held_head, is_wrapped, tuned_layers
from mobizo_kernels.loss import IGNORED
from mobizo_kernels.loss.label_head import after_head
from mobizo_kernels.optim import UpdateRule

Tensors = Sequence[torch.Tensor]

_LOGIT_ROWS = 256  # most rows of full-vocabulary logits that exist at a time


class TrainingGraph(nn.Module):
    """A wrapped model taken apart into what a program's methods need; the root module of all of them.

    Args:
        model: a wrapped causal LM in float32 or with quantised linears, changed in place: the adapted
            linears become :class:`TracedLinear`.
        groups: G.
        distribution: of the directions.
        rule: of the updates.
        candidate_tokens: restrict the softmax to these; None for the whole vocabulary.
        attention: that of the decoder while a method is traced.
        tail_length: n, the last tokens of a row, where the adapters act (Activated LoRA, arXiv 2504.12397):
            the keys and values of those before are computed once for all groups. None for whole rows.
        readout: what is added to the candidates' rows of the LM head is the last input of the methods. It
            needs candidate tokens, and a head that no method tunes.
    """

    candidates: torch.Tensor
    widening_type: type[Widening] = Widening

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        groups: int,
        distribution: str,
        rule: UpdateRule,
        candidate_tokens: Sequence[int] | None,
        attention: GroupedAttention,
        tail_length: int | None = None,
        readout: bool = False,
    ) -> None:
        super().__init__()
        self.groups, self.rule = groups, rule
        self.attention, self.tail_length = attention, tail_length
        self.directions = TracedDirections(distribution)
        if is_wrapped(model):
            for hook in adapter_of(model).hooks:  # the graph itself knows where the adapters act
                hook.remove()
        layers = tuned_layers(model)
        self.linears = [self.linear_of(layer) for layer in layers.values()]
        for name, linear in zip(layers, self.linears, strict=True):
            model.set_submodule(name, linear)
        self.widening = self.widening_type(model, list(layers))
        self.model = model
        # The model's own head is no module of this one: an adapter's B would have two names, and torch.export
        # lets no method change such a buffer.
        self.rows: nn.Linear | None = None
        if candidate_tokens is not None:
            tokens = torch.tensor(list(candidate_tokens))
            self.register_buffer("candidates", tokens, persistent=False)
            head = model.get_output_embeddings()
            if head not in self.linears:
                self.rows = _rows_of(head, tokens)
        self.restricted = candidate_tokens is not None
        self.first_head = first_head(model, candidate_tokens or ())
        self.readout = readout
        self.added: torch.Tensor | None = None  # to the head's rows, while a method is traced
        self.writer: nn.Module | None = None  # of a graph whose methods write, too: a Writer

    def linear_of(self, layer: MPLoRALinear) -> Any:
        """What stands for an adapted linear in the graph, with `lora_a` and `lora_b`."""
        return TracedLinear(layer, self.directions, self.rule)

    def inputs(self, seeds: torch.Tensor, coeffs: torch.Tensor) -> list[torch.Tensor]:
        """What the method `train_step` is given of the directions: int64 [G] seeds, float32 [G] coeffs."""
        return [seeds, coeffs]

    def adapter_inputs(self) -> list[torch.Tensor]:
        """What the method `evaluate` is given of the adapter."""
        return []

    def use(self, inputs: Tensors) -> None:
        """The adapter and its directions in the forward that follows, from `inputs` or `adapter_inputs`."""
        unperturbed = (torch.zeros(1, dtype=torch.int64), torch.zeros(1))
        self.directions.use(*(inputs or unperturbed))

    def use_head(self, head: Tensors) -> None:
        """What is added to the head's rows in the forward that follows, [C, H], if anything is given."""
        self.added = head[0] if head else None

    def train_step(self, batch: Tensors, inputs: Tensors, head: Tensors) -> torch.Tensor:
        """The losses [G] of the method `train_step`, which leaves the adapter as it is.

        Args:
            batch: input_ids and attention_mask int64 [B, T], target_positions and target_ids int64 [B, K].
            inputs: as :meth:`inputs` gives them.
            head: as :meth:`head_input` gives it.
        """
        input_ids, attention_mask, target_positions, target_ids = batch
        self.use(inputs)
        self.use_head(head)
        return self.losses(self.hidden(input_ids, attention_mask, target_positions, self.groups), target_ids)

    def evaluate(self, batch: Tensors, inputs: Tensors, head: Tensors) -> Any:
        """The result of the method `evaluate`: of the unperturbed model the logits at the target positions
        and, for a readout, the states there; see :meth:`evaluated`.

        Args:
            batch: input_ids and attention_mask int64 [E, T], target_positions int64 [E, K].
            inputs: as :meth:`adapter_inputs` gives them.
            head: as :meth:`head_input` gives it.
        """
        input_ids, attention_mask, target_positions = batch
        self.use(inputs)
        self.use_head(head)
        return self.evaluated(self.hidden(input_ids, attention_mask, target_positions, 1))

    def head_input(self) -> list[torch.Tensor]:
        """The last input of `train_step` and `evaluate`, with which the program begins: float32 [C, H]."""
        if not self.readout:
            return []
        assert self.rows is not None
        if self.first_head is None:
            return [torch.zeros(self.rows.out_features, self.rows.in_features)]
        a, words = self.first_head
        return [(words.double() @ a.double()).float()]

    def update(self, seeds: torch.Tensor, coeffs: torch.Tensor, *numbers: torch.Tensor) -> torch.Tensor:
        """The update of every B; the L2 norm of the change of the whole adapter, float32 [1].

        Args:
            seeds: int64 [q].
            coeffs: float32 [q].
            numbers: float32 [1] each: the rate if the rule takes one, then the decay if it has weight decay.
        """
        lr = numbers[0] if self.rule.takes_rate else torch.zeros(1)
        decay = numbers[-1] if self.rule.weight_decay else None
        norms = torch.cat([linear.update(seeds, coeffs, lr, decay) for linear in self.linears])
        return norms.square().sum(dim=0, keepdim=True).sqrt()

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
        groups: int,
    ) -> torch.Tensor:
        """Last hidden states at positions [B, K] of every group's copy of the rows, [G * B, K, H]."""
        tokens, seen = (attention_mask.cumsum(dim=1) - 1).clamp(min=0), attention_mask != 0
        if self.tail_length is None:
            mask = self.attention.start(seen) if self.attention.applies else _causal(seen)
            states = self.decoded(input_ids, tokens, mask, groups)
        else:
            before = input_ids.shape[1] - self.tail_length
            self.directions.acting = False
            mask = self.attention.start(seen[:, :before])
            self.decoded(input_ids[:, :before], tokens[:, :before], mask, 1)
            self.directions.acting = True
            mask = self.attention.go_on(seen[:, before:])
            states = self.decoded(input_ids[:, before:], tokens[:, before:], mask, groups)
            positions = (positions - before).clamp(min=0)
        return self.gathered(states, positions.repeat(groups, 1))

    def gathered(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """states [rows, T, H] at positions int64 [rows, K] -> [rows, K, H]."""
        return states.gather(1, positions[:, :, None].expand(-1, -1, states.shape[-1]))

    def decoded(
        self, input_ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, groups: int
    ) -> torch.Tensor:
        """The decoder over int64 [B, T] tokens at their int64 [B, T] positions -> [G * B, T, H]."""
        self.widening.start(len(input_ids), groups)
        states = self.model.base_model(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self.widening(states)

    def evaluated(self, hidden: torch.Tensor) -> Any:
        """hidden [n, K, H] -> logits [n, K, C] and, for a readout, the states [n, K, H + C]: hidden, and what
        the head gives without an adapter of its own.
        """
        if self.rows is None or self.added is None:
            return self.logits(hidden)
        outputs = self.rows(hidden)
        return after_head(self.model, outputs + self._added(hidden)), torch.cat([hidden, outputs], dim=-1)

    def _added(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, K, H] -> [n, K, C], by the adapter of the head."""
        assert self.added is not None
        n, k, width = hidden.shape
        # bmm, for XNNPACK takes a linear of constant weights alone.
        return torch.bmm(hidden.reshape(1, n * k, width), self.added.t()[None]).reshape(n, k, -1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, K, H] -> logits [n, K, C] over the candidates, or over the vocabulary."""
        if self.rows is not None:
            outputs = self.rows(hidden)
            return after_head(self.model, outputs if self.added is None else outputs + self._added(hidden))
        logits = self.model.get_output_embeddings()(hidden)
        if self.restricted:
            logits = logits.index_select(-1, self.candidates)
        return after_head(self.model, logits)

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the labelled tokens of each group, float32 [G].

        Args:
            hidden: [G * B, K, H].
            targets: int64 [B, K], `IGNORED` where nothing is to be predicted. A target that is no candidate
                makes the losses NaN.
        """
        labelled = targets != IGNORED
        chunk = max(1, _LOGIT_ROWS // hidden.shape[0])
        total = torch.zeros(self.groups)
        for start in range(0, hidden.shape[1], chunk):
            # The whole is no slice of itself: a copy would cut the graph.
            states = hidden if chunk >= hidden.shape[1] else hidden[:, start : start + chunk]
            logits = self.logits(states)
            part, wanted = targets[:, start : start + chunk], labelled[:, start : start + chunk]
            surprise = -self._log_probability(logits, part.repeat(self.groups, 1))
            kept = torch.where(wanted.repeat(self.groups, 1), surprise, 0.0)
            total = total + kept.reshape(self.groups, -1).sum(dim=1)
        return total / labelled.sum()

    def _log_probability(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """[n, K, C], [n, K] -> [n, K]."""
        log_softmax = F.log_softmax(logits, dim=-1)
        if not self.restricted:
            return log_softmax.gather(-1, targets.clamp(min=0)[:, :, None]).squeeze(-1)
        match = (targets[:, :, None] == self.candidates).to(logits.dtype)
        return (log_softmax * match).sum(dim=-1) / match.sum(dim=-1)


def _causal(seen: torch.Tensor) -> torch.Tensor:
    """The mask of a decoder with attention of its own, [B, 1, T, T], from seen bool [B, T]."""
    length = seen.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    return torch.where(earlier[None, None] & seen[:, None, None, :], 0.0, BLOCKED)


def first_head(model: PreTrainedModel, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A [r, H] of a head's adapter that no run tunes, and the rows of B [C, r] of these tokens."""
    head = held_head(model)
    if head is None:
        return None
    return head.lora_a.detach().float().clone(), head.lora_b.detach()[list(tokens)].float().clone()


def _rows_of(head: Any, tokens: torch.Tensor) -> nn.Linear:
    """A linear that computes only those rows of an LM head."""
    if isinstance(head, MPLoRALinear):
        head = head.base_layer
    bias = getattr(head, "bias", None)
    rows = nn.Linear(head.weight.shape[1], len(tokens), bias=bias is not None)
    with torch.no_grad():
        rows.weight.copy_(head.weight[tokens])
        if bias is not None:
            rows.bias.copy_(bias[tokens])
    return rows.requires_grad_(False)
