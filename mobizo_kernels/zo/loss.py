"""Cross-entropy at labelled positions, for many groups of rows, without logits [rows, T, vocabulary].

Only the decoder runs over all tokens. Its hidden states are gathered where the next token is labelled, and
the LM head sees nothing else, a few tokens at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

IGNORED = -100
"""The label of a token that is not to be predicted, as in transformers."""


@dataclass(frozen=True)
class LabelledBatch:
    """A batch on the model's device, and what is to be predicted where in it.

    Attributes:
        inputs: what the decoder takes, each [B, T', ...], T' being the columns up to the last prediction.
        rows: row of each prediction, int64 [n].
        columns: column of each prediction, int64 [n].
        targets: class of the softmax to predict there, int64 [n].
    """

    inputs: dict[str, torch.Tensor]
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor


class LabelledLoss:
    """Mean cross-entropy over the labelled tokens of a batch, separately for each group of rows.

    A batch is a mapping of tensors as transformers' causal LMs take it: `input_ids` int64 [B, T], `labels`
    int64 [B, T] (-100 where nothing is to be predicted), usually `attention_mask` [B, T], and whatever else
    of shape [B, T, ...] the decoder takes. A label is predicted at the position before it, and not at all if
    that is padding. Rows may be padded on either side: positions are counted from the attention mask.
    Columns after the last prediction are not forwarded.

    Args:
        model: a causal LM of transformers, wrapped or not.
        candidate_tokens: restrict the softmax to these token ids: the loss on the label words only of MobiZO,
            arXiv 2409.15520. Every label then has to be one of them.
        chunk_tokens: most rows of logits that exist at a time.

    Raises:
        ValueError: if an argument is out of range, or if `model` computes its logits from the hidden states
            in a way that is not known here; a tiny forward of its own is compared with ours to make sure.
    """

    def __init__(
        self, model: nn.Module, *, candidate_tokens: Sequence[int] | None = None, chunk_tokens: int = 256
    ) -> None:
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
        self.model, self.chunk_tokens = _checked_causal_lm(model), chunk_tokens
        parameters = inspect.signature(self.model.base_model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self.candidates: torch.Tensor | None = None
        self._compare_with_model()
        if candidate_tokens is not None:
            self.candidates = self._checked_candidates(candidate_tokens)

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
        rows, columns, tokens = self._positions(batch)
        device, targets = self.model.device, self._targets(tokens)
        inputs = self._inputs(batch, columns)
        return LabelledBatch(inputs, rows.to(device), columns.to(device), targets.to(device))

    @torch.no_grad()
    def of_labelled(self, batch: LabelledBatch, groups: int = 1) -> torch.Tensor:
        """The loss of every group, float32 [groups], of a batch from :meth:`labelled`. Its own operations
        read nothing back to the host, so they can be captured in a CUDA graph.
        """
        hidden = self._hidden(batch.inputs, batch.rows, batch.columns, groups)
        total = torch.zeros(groups, device=hidden.device)
        # A chunk takes the same tokens of every group, so an adapted LM head finds its groups in it.
        step = max(1, self.chunk_tokens // groups)
        for part, target in zip(hidden.split(step, dim=1), batch.targets.split(step), strict=True):
            losses = F.cross_entropy(
                self._logits(part.flatten(0, 1)).float(), target.repeat(groups), reduction="none"
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
        rows, columns, _ = self._positions(batch)
        hidden = self._hidden(self._inputs(batch, columns), rows, columns)[0]
        return torch.cat([self._logits(part).float() for part in hidden.split(self.chunk_tokens)])

    def _positions(
        self, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row and column of each prediction, and the token to predict there; each int64 [n]."""
        if "labels" not in batch or "input_ids" not in batch:
            raise ValueError(f"batch must hold input_ids and labels, got {sorted(batch)}")
        labels, shape = batch["labels"], batch["input_ids"].shape
        if labels.shape != shape:
            raise ValueError(
                f"labels must have the shape of input_ids, {list(shape)}, got {list(labels.shape)}"
            )
        wanted = labels[:, 1:] != IGNORED
        if "attention_mask" in batch:
            wanted &= batch["attention_mask"].to(labels.device)[:, :-1] != 0
        rows, columns = wanted.nonzero(as_tuple=True)
        if not len(rows):
            raise ValueError("batch has no label after a token that is not padding")
        return rows, columns, labels[rows, columns + 1]

    def _targets(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids as classes of the softmax."""
        if self.candidates is None:
            return tokens
        match = tokens[:, None] == self.candidates.to(tokens.device)
        if not match.any(dim=1).all():
            strangers = sorted(set(tokens[~match.any(dim=1)].tolist()))
            raise ValueError(
                f"labels must be among the candidate tokens {self.candidates.tolist()}, got {strangers}"
            )
        return match.int().argmax(dim=1)

    def _inputs(self, batch: Mapping[str, torch.Tensor], columns: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the decoder takes, up to the last of `columns`.

        A mask that hides nothing is left out: to see that it hides nothing transformers would read it back
        and, while a CUDA graph is captured, build the mask of the attention instead.
        """
        width = int(columns.max()) + 1
        inputs = {name: tensor[:, :width] for name, tensor in batch.items() if name != "labels"}
        if "attention_mask" in inputs and "position_ids" not in inputs:
            if bool((inputs["attention_mask"] != 0).all()):
                del inputs["attention_mask"]
            elif self._takes_positions:
                positions = inputs["attention_mask"].long().cumsum(dim=1) - 1
                inputs["position_ids"] = positions.clamp(min=0)
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def _hidden(
        self, inputs: dict[str, torch.Tensor], rows: torch.Tensor, columns: torch.Tensor, groups: int = 1
    ) -> torch.Tensor:
        """Last hidden states of the decoder at n positions of every group, [groups, n, H]."""
        inputs = {name: torch.cat([tensor] * groups) for name, tensor in inputs.items()}
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        return hidden.unflatten(0, (groups, -1))[:, rows, columns]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, H] -> logits [n, C] or [n, vocabulary] in the model's dtype."""
        head, candidates = self.model.get_output_embeddings(), self.candidates
        if candidates is None:
            return after_head(self.model, head(hidden))
        if type(head) is nn.Linear and type(head.weight) is nn.Parameter:
            bias = None if head.bias is None else head.bias[candidates]
            return after_head(self.model, F.linear(hidden, head.weight[candidates], bias))
        return after_head(self.model, head(hidden))[:, candidates]

    def _checked_candidates(self, tokens: Sequence[int]) -> torch.Tensor:
        vocabulary = self.model.config.get_text_config().vocab_size
        if len(tokens) < 2 or len(set(tokens)) < len(tokens):
            raise ValueError(f"candidate_tokens must be at least 2 different token ids, got {list(tokens)}")
        if not all(0 <= token < vocabulary for token in tokens):
            raise ValueError(f"candidate_tokens must be in [0, {vocabulary}), got {list(tokens)}")
        return torch.tensor(list(tokens), device=self.model.device)

    @torch.no_grad()
    def _compare_with_model(self) -> None:
        """Raise ValueError unless the model's own logits, on a few tokens, are ours."""
        vocabulary = self.model.config.get_text_config().vocab_size
        tokens = (torch.arange(10, device=self.model.device) % vocabulary).view(2, 5)
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()  # dropout would make any two forwards differ
        try:
            expected = self.model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            got = self.logits({"input_ids": tokens, "labels": tokens})
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


def after_head(model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
    """What some architectures do to the logits of their LM head, by the names in their configurations."""
    config = model.config.get_text_config()
    for multiplier in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        if factor := getattr(config, multiplier, None):
            logits = logits * factor
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = cap * torch.tanh(logits / cap)
    return logits
