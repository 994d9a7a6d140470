"""Cross-entropy at labelled positions, for many groups of rows, without logits [rows, T, vocabulary].

Only the decoder runs over all tokens. Its hidden states are gathered where the next token is labelled, and
the LM head sees nothing else, a few tokens at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.lora import adapter_of, is_wrapped
from mobizo_kernels.sharing import SharedDecoder, StateStore
from mobizo_kernels.zo.label_head import LabelHead
from mobizo_kernels.zo.labelled import IGNORED, BatchReader, LabelledBatch, predictions


class LabelledLoss:
    """Mean cross-entropy over the labelled tokens of a batch, separately for each group of rows.

    A batch is a mapping of tensors as transformers' causal LMs take it: `input_ids` int64 [B, T], `labels`
    int64 [B, T] (-100 where nothing is to be predicted), usually `attention_mask` [B, T], and whatever else
    of shape [B, T, ...] the decoder takes. A label is predicted at the position before it, and not at all if
    that is padding. Rows may be padded on either side: positions are counted from the attention mask.
    Columns after the last prediction are not forwarded.

    What is the same in all groups runs once: the layers below the first adapted one and, with Activated LoRA
    (`alora_invocation_tokens`), the tokens before the invocation; see :class:`SharedDecoder`. A model of a
    kind with which that cannot be done runs every group over everything.

    Args:
        model: a causal LM of transformers, wrapped or not.
        candidate_tokens: restrict the softmax to these token ids: the loss on the label words only of MobiZO,
            arXiv 2409.15520. Every label then has to be one of them.
        chunk_tokens: most rows of logits that exist at a time.
        store: keeps what the base model makes of the tokens before an invocation, for the next epoch.

    Raises:
        ValueError: if an argument is out of range, or if `model` computes its logits from the hidden states
            in a way that is not known here; a tiny forward of its own is compared with ours to make sure.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        candidate_tokens: Sequence[int] | None = None,
        chunk_tokens: int = 256,
        store: StateStore | None = None,
    ) -> None:
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        self.model, self.chunk_tokens, self.store = _checked_causal_lm(model), chunk_tokens, store
        self._shared: SharedDecoder | None = None
        self._shared_for: object = None  # the adapter's configuration that `_shared` was made for
        self._reader = BatchReader(self.model)
        self._compare_with_model()
        self._head = LabelHead(self.model, candidate_tokens)

    @property
    def candidates(self) -> torch.Tensor | None:
        """The candidate tokens, int64 [C] on the model's device."""
        return self._head.candidates

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

        Raises:
            ValueError: as for a call.
        """
        rows, columns, tokens = predictions(batch)
        return self._labelled(batch, rows, columns, self._head.targets(tokens))

    def _labelled(
        self,
        batch: Mapping[str, torch.Tensor],
        rows: torch.Tensor,
        columns: torch.Tensor,
        targets: torch.Tensor,
    ) -> LabelledBatch:
        shared = self._shared_decoder()
        if shared is None:
            return self._reader.whole(batch, rows, columns, targets)
        states = None if self.store is None else f"{shared.first} {self.model.dtype}"
        return self._reader.divided(batch, rows, columns, targets, states)

    @torch.no_grad()
    def of_labelled(self, batch: LabelledBatch, groups: int = 1) -> torch.Tensor:
        """The loss of every group, float32 [groups], of a batch from :meth:`labelled`. Its own operations
        read nothing back to the host, so they can be captured in a CUDA graph.
        """
        hidden = self._hidden(batch, groups)
        total = torch.zeros(groups, dtype=torch.float32, device=hidden.device)
        # A chunk takes the same tokens of every group, so an adapted LM head finds its groups in it.
        step = max(1, self.chunk_tokens // groups)
        for part, target in zip(hidden.split(step, dim=1), batch.targets.split(step), strict=True):
            losses = F.cross_entropy(
                self._head.logits(part.flatten(0, 1)).float(), target.repeat(groups), reduction="none"
            )
            total += losses.view(groups, -1).sum(dim=1)
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
        rows, columns, tokens = predictions(batch)
        hidden = self._hidden(self._labelled(batch, rows, columns, tokens))[0]
        return torch.cat([self._head.logits(part).float() for part in hidden.split(self.chunk_tokens)])

    def _hidden(self, batch: LabelledBatch, groups: int = 1) -> torch.Tensor:
        """Last hidden states of the decoder at the n predictions of every group, [groups, n, H]."""
        if batch.block is None:
            inputs = {name: torch.cat([tensor] * groups) for name, tensor in batch.inputs.items()}
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        else:
            assert self._shared is not None
            store = self.store if batch.keys else None
            hidden = self._shared(batch.block, groups, batch.prefix, store=store, keys=batch.keys)
        return hidden.unflatten(0, (groups, -1))[:, batch.rows, batch.columns]

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
            self._compare_shared(shared, config.alora_invocation_tokens)
        return self._shared

    @torch.no_grad()
    def _compare_shared(self, shared: SharedDecoder, tokens: list[int] | None) -> None:
        """Take `shared` if it computes what the whole model computes for every group."""
        model, vocabulary = self.model, self.model.config.get_text_config().vocab_size
        width = 6 + len(tokens or ())
        ids = (torch.arange(2 * width, device="cpu").view(2, width) * 7 + 3) % vocabulary
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        if tokens is not None:
            ids[:, -1 - len(tokens) : -1] = torch.tensor(tokens, device="cpu")
        labels = torch.full_like(ids, IGNORED)
        labels[:, -1] = ids[:, -1]
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        rows, columns, targets = predictions(batch)
        directions = adapter_of(model).directions
        modes = {module: module.training for module in model.modules()}
        model.eval()
        seeds = torch.tensor([1, 2], device="cpu")
        coeffs = torch.tensor([0.1, -0.1], dtype=torch.float32, device="cpu")
        try:
            with directions.use(seeds, coeffs):
                plain = self._labelled(batch, rows, columns, targets)
                expected = self._hidden(plain, 2).float()
                self._shared = shared
                got = self._hidden(self._labelled(batch, rows, columns, targets), 2).float()
        except Exception as error:  # whatever a decoder of another build makes of it
            self._shared = None
            self._explain(error)
            return
        finally:
            for module, mode in modes.items():
                module.training = mode
        off, largest = (got - expected).abs().max().item(), expected.abs().max().item()
        if not off <= largest * (1e-4 if model.dtype == torch.float32 else 5e-2):
            self._shared = None
            self._explain(f"the result is off by up to {off:.1e}, the largest being {largest:.1e}")

    def _explain(self, reason: Any) -> None:
        config = adapter_of(self.model).config
        if config.alora_invocation_tokens is not None or config.layers_to_transform is not None:
            warnings.warn(
                f"every group runs over all tokens and layers of {type(self.model).__name__}, because the "
                f"common part cannot be shared: {reason}",
                stacklevel=2,
            )

    @torch.no_grad()
    def _compare_with_model(self) -> None:
        """Raise ValueError unless the model's own logits, on a few tokens, are ours."""
        vocabulary = self.model.config.get_text_config().vocab_size
        tokens = (torch.arange(10, device=self.model.device) % vocabulary).view(2, 5)
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()  # dropout would make any two forwards differ
        try:
            expected = self.model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            batch = {"input_ids": tokens, "labels": tokens}
            rows, columns, targets = predictions(batch)
            plain = self._reader.whole(batch, rows, columns, targets)
            got = LabelHead(self.model).logits(self._hidden(plain)[0]).float()
        finally:
            for module, mode in modes.items():
                module.training = mode
        error, largest = (got - expected).abs().max().item(), expected.abs().max().item()
        if not error <= largest * (1e-4 if self.model.dtype == torch.float32 else 1e-2):
            raise ValueError(
                f"{type(self.model).__name__} does not get its logits from its LM head in a known way: "
                f"ours are off by up to {error:.1e}, the largest being {largest:.1e}"
            )


def _checked_causal_lm(model: nn.Module) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model must be a causal LM of transformers, got {type(model).__name__}")
    if model.base_model is model or model.get_output_embeddings() is None or model.config.is_encoder_decoder:
        raise ValueError(f"model must be a decoder with an LM head, got {type(model).__name__}")
    return model
