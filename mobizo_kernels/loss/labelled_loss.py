"""Cross-entropy at labelled positions, for many groups of rows, without logits [rows, T, vocabulary].

Only the decoder runs over all tokens. Its hidden states are gathered where the next token is labelled, and
the LM head sees nothing else, a few tokens at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mobizo_kernels.lora import MPLoRALinear, adapter_of, invocation_starts, is_wrapped
from mobizo_kernels.loss.agreement import (
    check_groups,
    check_logits,
    checked_causal_lm,
    tells_texts_apart,
    why_not_shared,
)
from mobizo_kernels.loss.compiled import CompiledLayers
from mobizo_kernels.loss.float32_products import fast_float32_products
from mobizo_kernels.loss.label_head import LabelHead
from mobizo_kernels.loss.labelled_batch import BatchReader, LabelledBatch
from mobizo_kernels.loss.rows import RowReader, Rows
from mobizo_kernels.loss.sharing import SharedDecoder, StateStore
from mobizo_kernels.parameters import has_wrapped_parameters, parameter_directions

MOST_LOGITS = 256
"""Rows of logits that exist at a time: those of a large vocabulary would be the largest tensor of a step."""


class LabelledLoss:
    """Mean cross-entropy over the labelled tokens of a batch, separately for each group of rows.

    A batch is a mapping of tensors as transformers' causal LMs take it: `input_ids` int64 [B, T], `labels`
    int64 [B, T] (-100 where nothing is to be predicted), usually `attention_mask` [B, T] of 0 and 1, and
    whatever else the decoder takes by name, each [B, T]; other columns are left out, as by transformers'
    Trainer. Rows may be padded anywhere: what the mask hides is taken out of its row, so the loss is that of
    the rows without padding. A label is predicted at the token before it; the first of a row is not. Columns
    after the last prediction are not forwarded.

    `position_ids` that begin anew within a row, as of `DataCollatorWithFlattening`, tell several texts apart.

    What is the same in all groups runs once: the layers below the first adapted one and, with Activated LoRA
    (`alora_invocation_tokens`), the tokens before the invocation; see :class:`SharedDecoder`. A model of a
    kind with which that cannot be done runs every group over everything, and so does any model on rows of
    several texts, and on rows so long that its rotary embedding changes.

    Args:
        model: a causal LM of transformers, wrapped or not.
        candidate_tokens: restrict the softmax to these token ids: the loss on the label words only of MobiZO,
            arXiv 2409.15520. Every label then has to be one of them.
        store: keeps what the base model makes of the tokens before an invocation, for the next epoch.
        compile: run the decoder's layers by torch.compile; see :class:`CompiledLayers`.

    Raises:
        ValueError: if an argument is out of range, if `model` computes its logits from the hidden states in a
            way that is not known here, or if they depend on later tokens or on other rows; a tiny forward of
            its own is compared with ours to make sure. Of a model of `wrap_parameters` also if a group of
            rows does not get there what it gets alone.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        candidate_tokens: Sequence[int] | None = None,
        store: StateStore | None = None,
        compile: bool = False,
    ) -> None:
        self.model, self.store = checked_causal_lm(model), store
        if compile and has_wrapped_parameters(model):
            raise ValueError("compile=True needs a model that is not one of wrap_parameters")
        compiled = CompiledLayers(self.model) if compile else None
        self._compiled: CompiledLayers | None = None
        self._shared: SharedDecoder | None = None
        self._shared_for: object = None  # the adapter's configuration that `_shared` was made for
        self._tells_texts_apart: bool | None = None
        self._read, self._reader = RowReader(self.model), BatchReader(self.model)
        whole = LabelHead(self.model)
        check_logits(
            self.model,
            self._read,
            lambda rows: self._logits(whole, self._reader.whole(rows, rows.tokens)),
        )
        if has_wrapped_parameters(model):
            check_groups(
                self.model,
                self._read,
                lambda rows, groups: whole.logits(
                    self._hidden(self._reader.whole(rows, rows.tokens), groups).flatten(0, 1)
                ),
            )
        self._head = LabelHead(self.model, candidate_tokens)
        self._compiled = compiled

    @property
    def candidates(self) -> torch.Tensor | None:
        """The candidate tokens, int64 [C] on the model's device."""
        return self._head.candidates

    @property
    def head(self) -> LabelHead:
        """The softmax."""
        return self._head

    @property
    def compiles(self) -> bool:
        """Whether the layers run compiled."""
        return self._compiled is not None

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, torch.Tensor], groups: int = 1) -> torch.Tensor:
        """The loss of every group, float32 [groups]; all of them see the same B rows, in one forward.

        Args:
            batch: B rows, as above.
            groups: G; the forward runs over G * B rows, group after group.

        Raises:
            ValueError: if the batch has no labels or no labelled token, or a label is not a candidate.
        """
        return self.of_labelled(self.labelled(batch), groups)

    def labelled(self, batch: Mapping[str, torch.Tensor]) -> LabelledBatch:
        """Find out on the host whatever the shapes of :meth:`of_labelled` depend on.

        Args:
            batch: B rows, as above.

        Returns:
            The batch, on the host still.

        Raises:
            ValueError: as for a call.
        """
        rows = self._rows(batch)
        return self._labelled(rows, self._head.targets(rows.tokens))

    def _rows(self, batch: Mapping[str, torch.Tensor]) -> Rows:
        tokens = None
        if is_wrapped(self.model):
            tokens = adapter_of(self.model).config.alora_invocation_tokens
        rows = self._read(batch, tokens)
        # With a mask beside them, transformers takes the positions for no more than positions.
        if not rows.one_text and "attention_mask" not in rows.inputs:
            if self._tells_texts_apart is None:
                self._tells_texts_apart = tells_texts_apart(self.model)
            if not self._tells_texts_apart:
                raise ValueError(
                    f"batch: {type(self.model).__name__} does not tell several texts in a row apart by their "
                    "position_ids; give each a row of its own"
                )
        return rows

    def _labelled(self, rows: Rows, targets: torch.Tensor) -> LabelledBatch:
        shared = self._shared_decoder()
        if shared is None or not rows.one_text or not shared.takes(rows.inputs["input_ids"].shape[1]):
            return self._reader.whole(rows, targets)
        states = None if self.store is None else f"{shared.first} {self.model.dtype}"
        return self._reader.divided(rows, targets, states)

    @torch.no_grad()
    def of_labelled(self, batch: LabelledBatch, groups: int = 1) -> torch.Tensor:
        """The loss of every group, float32 [groups], of a batch from :meth:`labelled`. If that is on the
        model's device, nothing is copied to or from the host, and a CUDA graph can capture all of it.
        """
        return self._mean(batch, groups, partial(F.cross_entropy, reduction="none"))

    @torch.no_grad()
    def errors(self, batch: Mapping[str, torch.Tensor], groups: int = 1) -> torch.Tensor:
        """The share of labelled tokens to which every group prefers another token, float32 [groups].

        Args:
            batch: B rows, as above.
            groups: G.

        Raises:
            ValueError: as for a call.
        """
        return self._mean(
            self.labelled(batch), groups, lambda logits, targets: (logits.argmax(dim=-1) != targets).float()
        )

    def _mean(
        self,
        batch: LabelledBatch,
        groups: int,
        measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """The mean of measure(logits [m, C], targets [m]) -> [m] over the labelled tokens of every group."""
        batch = batch.to(self.model.device)
        hidden = self._hidden(batch, groups)
        total = torch.zeros(groups, dtype=torch.float32, device=hidden.device)
        # A chunk takes the same tokens of every group, so an adapted LM head finds its groups in it.
        step = max(1, MOST_LOGITS // groups)
        acting = self._acting(batch)
        for start, target in zip(range(0, len(batch.targets), step), batch.targets.split(step), strict=True):
            part = slice(start, start + step)
            active = None if acting is None else acting[part].repeat(groups)
            logits = self._head.logits(hidden[:, part].flatten(0, 1), active).float()
            total += measure(logits, target.repeat(groups)).view(groups, -1).sum(dim=1)
        return total / len(batch.targets)

    @torch.no_grad()
    def logits(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The logits that predict each labelled token, for evaluation.

        Args:
            batch: B rows, as above. Labels mark positions only: they need not be candidates.

        Returns:
            float32 [n, C] over the candidate tokens in their order, or [n, vocabulary] without candidates; n
            labelled tokens, row by row. With one label in each row, n is B.

        Raises:
            ValueError: if the batch has no labels or no labelled token.
        """
        rows = self._rows(batch)
        return self._logits(self._head, self._labelled(rows, rows.tokens)).float()

    @torch.no_grad()
    def of_tokens(self, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each labelled token, for evaluation.

        Args:
            batch: B rows, as above.

        Returns:
            float32 [n] and the rows of the tokens, int64 [n], row by row.

        Raises:
            ValueError: as for a call.
        """
        labelled = self.labelled(batch).to(self.model.device)
        hidden, acting = self._hidden(labelled)[0], self._acting(labelled)
        losses = []
        for start in range(0, len(hidden), MOST_LOGITS):
            part = slice(start, start + MOST_LOGITS)
            logits = self._head.logits(hidden[part], None if acting is None else acting[part])
            losses.append(F.cross_entropy(logits.float(), labelled.targets[part], reduction="none"))
        return torch.cat(losses), labelled.rows

    def _logits(self, head: LabelHead, batch: LabelledBatch) -> torch.Tensor:
        batch = batch.to(self.model.device)
        hidden, acting = self._hidden(batch)[0], self._acting(batch)
        parts = [slice(start, start + MOST_LOGITS) for start in range(0, len(hidden), MOST_LOGITS)]
        return torch.cat([head.logits(hidden[p], None if acting is None else acting[p]) for p in parts])

    def _acting(self, batch: LabelledBatch) -> torch.Tensor | None:
        """Where the adapter of an LM head acts at the predictions, bool [n], with Activated LoRA; None for
        everywhere, as in a divided batch, whose rows all begin with the invocation.
        """
        adapted = is_wrapped(self.model) and isinstance(self.model.get_output_embeddings(), MPLoRALinear)
        tokens = adapter_of(self.model).config.alora_invocation_tokens if adapted else None
        if tokens is None or batch.block is not None:
            return None
        starts = invocation_starts(batch.inputs["input_ids"], tokens, batch.inputs.get("attention_mask"))
        starts = starts[batch.rows]
        return (starts >= 0) & (batch.columns >= starts)

    @torch.no_grad()
    def hidden_states(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the LM head is given to predict each labelled token, [n, H] in the model's dtype.

        Args:
            batch: as of :meth:`logits`, like what is raised.
        """
        rows = self._rows(batch)
        return self._hidden(self._labelled(rows, rows.tokens))[0]

    @torch.no_grad()
    def states_entering(
        self, modules: Sequence[nn.Module], batch: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        """What some modules of the decoder are given first at the token before each label, each [n, H], and
        behind them :meth:`hidden_states`. The layers run uncompiled.

        Args:
            modules: of the layers from the first adapted one on, or behind the layers.
            batch: as of :meth:`logits`, like what is raised.
        """
        rows = self._rows(batch)
        labelled = self._labelled(rows, rows.tokens).to(self.model.device)
        entering: dict[nn.Module, torch.Tensor] = {}

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            entering[module] = args[0]  # at last that of the block, behind what comes before it

        hooks = [module.register_forward_pre_hook(note) for module in modules]
        compiled, self._compiled = self._compiled, None
        if self._shared is not None:
            self._shared.compiled = None
        try:
            with fast_float32_products(self.model):
                hidden = self._decoded(labelled, groups=1)
        finally:
            self._compiled = compiled
            if self._shared is not None:
                self._shared.compiled = compiled
            for hook in hooks:
                hook.remove()
        states = [*(entering[module] for module in modules), hidden]
        return [state.reshape(*hidden.shape[:2], -1)[labelled.rows, labelled.columns] for state in states]

    def _hidden(self, batch: LabelledBatch, groups: int = 1) -> torch.Tensor:
        """Last hidden states of the decoder at the n predictions of every group, [groups, n, H]."""
        batch = batch.to(self.model.device)
        with fast_float32_products(self.model):
            hidden = self._decoded(batch, groups)
        return hidden.unflatten(0, (groups, -1))[:, batch.rows, batch.columns]

    def _decoded(self, batch: LabelledBatch, groups: int) -> torch.Tensor:
        """Last hidden states of the decoder, [groups * B, T, H]: of all tokens, or of those not shared."""
        if batch.block is None:
            inputs = {name: torch.cat([tensor] * groups) for name, tensor in batch.inputs.items()}
            if has_wrapped_parameters(self.model):
                parameter_directions(self.model).rows = len(inputs["input_ids"])
            with nullcontext() if self._compiled is None else self._compiled.running():
                hidden: torch.Tensor = self.model.base_model(**inputs, use_cache=False).last_hidden_state
                return hidden
        assert self._shared is not None
        store = self.store if batch.keys else None
        return self._shared(batch.block, groups, batch.prefix, store=store, keys=batch.keys)

    def _shared_decoder(self) -> SharedDecoder | None:
        """What shares work between groups, or None if there is nothing to share or no way to."""
        if not is_wrapped(self.model):
            return None
        config = adapter_of(self.model).config
        if config is self._shared_for:
            return self._shared
        self._shared, self._shared_for = None, config
        try:
            shared = SharedDecoder(self.model)
        except ValueError as reason:
            self._explain(reason)
            return None
        if shared.first or config.alora_invocation_tokens is not None:
            compiled, self._compiled = self._compiled, None
            try:
                self._compare_shared(shared, config.alora_invocation_tokens)
            finally:
                self._compiled = shared.compiled = compiled
        return self._shared

    def _compare_shared(self, shared: SharedDecoder, tokens: list[int] | None) -> None:
        """Take `shared` if it computes what the whole model computes for every group."""

        def hidden(rows: Rows, divided: bool) -> torch.Tensor:
            if not divided:
                return self._hidden(self._reader.whole(rows, rows.tokens), 2)
            self._shared = shared
            return self._hidden(self._reader.divided(rows, rows.tokens), 2)

        if reason := why_not_shared(self.model, self._read, tokens, hidden):
            self._shared = None
            self._explain(reason)

    def _explain(self, reason: Any) -> None:
        config = adapter_of(self.model).config
        if config.alora_invocation_tokens is not None or config.layers_to_transform is not None:
            warnings.warn(
                f"every group runs over all tokens and layers of {type(self.model).__name__}, because the "
                f"common part cannot be shared: {reason}",
                stacklevel=2,
            )
