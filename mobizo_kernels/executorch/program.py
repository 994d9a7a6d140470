"""The methods of a training program as modules that torch.export can trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels import ops
from mobizo_kernels.executorch.widening import Widening
from mobizo_kernels.executorch.xnnpack_rewrites import BLOCKED, GroupedAttention
from mobizo_kernels.lora import MPLoRALinear, adapter_of, held_head, is_wrapped, tuned_layers
from mobizo_kernels.loss import IGNORED
from mobizo_kernels.loss.label_head import after_head
from mobizo_kernels.optim import UpdateRule

if TYPE_CHECKING:
    from mobizo_kernels.executorch.writing import Writer

_LOGIT_ROWS = 256  # most rows of full-vocabulary logits that exist at a time


class TracedDirections:
    """The seeds and coefficients that the adapters of a graph read: set while a method is traced.

    No module with buffers as in eager: a traced method would write its inputs into them.
    """

    def __init__(self, distribution: str) -> None:
        self.distribution = distribution
        self.seeds = torch.zeros(1, dtype=torch.int64)
        self.coeffs = torch.zeros(1)
        self.acting = True  # else the adapters are passed by
        # float32 [1, T, 1], 1 at tokens where they act and 0 elsewhere; None for everywhere.
        self.active: torch.Tensor | None = None

    def use(self, seeds: torch.Tensor, coeffs: torch.Tensor) -> None:
        """seeds int64 [G] and coeffs float32 [G] of the forward that follows."""
        self.seeds, self.coeffs = seeds, coeffs


class TracedLinear(nn.Module):
    """:class:`MPLoRALinear` with B, and what the optimizer keeps of it, as buffers, which a program can keep
    and change.

    B is read by our ops only: a delegate that were given it would bake its first value in.
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor

    def __init__(self, layer: MPLoRALinear, directions: TracedDirections, rule: UpdateRule) -> None:
        super().__init__()
        self.base_layer, self.directions, self.rule = layer.base_layer, directions, rule
        self.scaling, self.stream = layer.scaling, layer.stream
        self.register_buffer("lora_a", layer.lora_a.detach().float().contiguous())
        self.register_buffer("lora_b", layer.lora_b.detach().float().contiguous().clone())
        for name in rule.state:
            self.register_buffer(name, torch.zeros_like(self.lora_b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = self.directions
        if not d.acting:
            return self.base_layer(x)
        adapted = x if d.active is None else x * d.active
        return ops.mp_lora(
            self.base_layer(x), adapted, self.lora_a, self.lora_b, d.seeds, d.coeffs, self.scaling,
            self.stream, d.distribution,
        )  # fmt: skip

    @property
    def state(self) -> list[torch.Tensor]:
        """What the optimizer keeps."""
        return [self.get_buffer(name) for name in self.rule.state]

    def update(
        self, seeds: torch.Tensor, coeffs: torch.Tensor, lr: torch.Tensor, decay: torch.Tensor | None
    ) -> torch.Tensor:
        """The rule's update of B and its state in place; the L2 norm of its change of B, [1].

        Args:
            seeds: int64 [q].
            coeffs: float32 [q].
            lr: float32 [1]; read by a rule that takes its rate.
            decay: float32 [1] or None; B is multiplied by it first, which the norm leaves out. Our ops take a
                number there, which a graph would keep.
        """
        rule, stream, distribution = self.rule, self.stream, self.directions.distribution
        if decay is not None:
            self.lora_b.mul_(decay)
        if rule.name == "adam":
            mean, square = self.state
            return ops.zo_adam(
                self.lora_b, mean, square, seeds, coeffs, lr, stream, *rule.betas, rule.eps, 1.0, distribution
            )
        if rule.name == "sign":
            return ops.zo_sign(self.lora_b, seeds, coeffs, lr, stream, 1.0, distribution)
        if rule.momentum:
            (velocity,) = self.state
            return ops.zo_momentum(
                self.lora_b, velocity, seeds, coeffs, stream, rule.momentum, 1.0, distribution
            )
        return ops.zo_update(self.lora_b, seeds, coeffs, stream, 1.0, distribution)


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
        self.writer: Writer | None = None  # of a graph whose methods write, too

    def linear_of(self, layer: MPLoRALinear) -> Any:
        """What stands for an adapted linear in the graph, with `lora_a` and `lora_b`."""
        return TracedLinear(layer, self.directions, self.rule)

    def step(self, batch: Sequence[torch.Tensor], seeds: torch.Tensor, coeffs: torch.Tensor) -> torch.Tensor:
        """The losses [G] of the method `train_step` without an update, not traced; see :class:`TrainStep`."""
        return TrainStep(self)(*batch, seeds, coeffs, *self.head_input())

    def evaluation(self, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        """The logits of the method `evaluate`, not traced; see :class:`Evaluate`."""
        found: Any = Evaluate(self)(*batch, *self.head_input())
        return found[0] if self.readout else found

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


class Method(nn.Module):
    """One method of a program over the shared graph; buffers keep their names from method to method."""

    def __init__(self, program: TrainingGraph) -> None:
        super().__init__()
        self.program = program

    def use_head(self, head: Sequence[torch.Tensor]) -> None:
        """What is added to the head's rows in the forward that follows, [C, H], if anything is given."""
        self.program.added = head[0] if head else None


class TrainStep(Method):
    """The batched forward of a step."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        target_ids: torch.Tensor,
        seeds: torch.Tensor,
        coeffs: torch.Tensor,
        *head: torch.Tensor,
    ) -> Any:
        program = self.program
        program.directions.use(seeds, coeffs)
        self.use_head(head)
        hidden = program.hidden(input_ids, attention_mask, target_positions, program.groups)
        return program.losses(hidden, target_ids)


class UpdateAndTrainStep(TrainStep):
    """The last step's update, then the batched forward of this one.

    Of plain SGD only: there an update of zeros changes nothing, as the first step needs it, while state and
    weight decay would go on.
    """

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        target_ids: torch.Tensor,
        seeds: torch.Tensor,
        coeffs: torch.Tensor,
        update_seeds: torch.Tensor,
        update_coeffs: torch.Tensor,
        *head: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norm = self.program.update(update_seeds, update_coeffs)
        step = (input_ids, attention_mask, target_positions, target_ids, seeds, coeffs)
        return super().forward(*step, *head), norm


class Evaluate(Method):
    """The logits of the unperturbed model at the target positions and, for a readout, the states there."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        *head: torch.Tensor,
    ) -> Any:
        program = self.program
        program.directions.use(torch.zeros(1, dtype=torch.int64), torch.zeros(1))
        self.use_head(head)
        return program.evaluated(program.hidden(input_ids, attention_mask, target_positions, 1))


class Update(Method):
    """An update alone."""

    def forward(
        self, update_seeds: torch.Tensor, update_coeffs: torch.Tensor, *numbers: torch.Tensor
    ) -> torch.Tensor:
        return self.program.update(update_seeds, update_coeffs, *numbers)


class GetAdapter(Method):
    """Every A, every B; then A of the head [r, H] and its words [C, r], if the program begins with some."""

    def forward(self) -> tuple[torch.Tensor, ...]:
        linears, head = self.program.linears, self.program.first_head or ()
        found = [x.lora_a.clone() for x in linears] + [x.lora_b.clone() for x in linears]
        return tuple(found + [factor.clone() for factor in head])


class SetAdapter(Method):
    """Every B anew, and no trace of earlier updates; returns their sum [1], for a method has to return
    something.
    """

    def forward(self, *lora_b: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(1)
        for linear, value in zip(self.program.linears, lora_b, strict=True):
            linear.lora_b.copy_(value)
            for state in linear.state:
                state.zero_()
            total = total + value.sum()
        return total


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
