"""Cross-entropy at labelled positions, for many groups of rows, without logits [rows, T, vocabulary].

Only the decoder runs over all tokens. Its hidden states are gathered where the next token is labelled, and
the LM head sees nothing else, a few tokens at a time.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.lora import adapter_of, invocation_starts, is_wrapped
from mobizo_kernels.sharing import SharedDecoder, StateStore, TokenBlock

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
        block: the tokens that every group runs, where work is shared between groups; `inputs` is empty then,
            and `columns` are its.
        prefix: the tokens before them, which run once.
        keys: of the rows in a :class:`StateStore`.
    """

    inputs: dict[str, torch.Tensor]
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    block: TokenBlock | None = None
    prefix: TokenBlock | None = None
    keys: tuple[bytes, ...] = ()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of its tensors by name."""
        found = {"rows": self.rows, "columns": self.columns, "targets": self.targets}
        found |= {f"inputs.{name}": tensor for name, tensor in self.inputs.items()}
        for part in ("block", "prefix"):
            block: TokenBlock | None = getattr(self, part)
            if block is not None:
                found |= {f"{part}.{name}": tensor for name, tensor in block.inputs.items()}
                if block.seen is not None:
                    found[f"{part}.seen"] = block.seen
        return found

    def clone(self) -> LabelledBatch:
        """The same in memory of its own."""

        def copied(block: TokenBlock | None) -> TokenBlock | None:
            if block is None:
                return None
            inputs = {name: tensor.clone() for name, tensor in block.inputs.items()}
            return TokenBlock(inputs, None if block.seen is None else block.seen.clone())

        inputs = {name: tensor.clone() for name, tensor in self.inputs.items()}
        return LabelledBatch(
            inputs, self.rows.clone(), self.columns.clone(), self.targets.clone(),
            copied(self.block), copied(self.prefix), self.keys,
        )  # fmt: skip


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
        return self._labelled(batch, rows, columns, self._targets(tokens))

    def _labelled(
        self,
        batch: Mapping[str, torch.Tensor],
        rows: torch.Tensor,
        columns: torch.Tensor,
        targets: torch.Tensor,
    ) -> LabelledBatch:
        device, inputs = self.model.device, self._inputs(batch, columns)
        shared = self._shared_decoder()
        if shared is None:
            return LabelledBatch(inputs, rows.to(device), columns.to(device), targets.to(device))
        block, prefix, columns, keys = self._split(batch, inputs, rows, columns)
        return LabelledBatch({}, rows.to(device), columns.to(device), targets.to(device), block, prefix, keys)

    @torch.no_grad()
    def of_labelled(self, batch: LabelledBatch, groups: int = 1) -> torch.Tensor:
        """The loss of every group, float32 [groups], of a batch from :meth:`labelled`. Its own operations
        read nothing back to the host, so they can be captured in a CUDA graph.
        """
        hidden = self._hidden(batch, groups)
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
        rows, columns, tokens = self._positions(batch)
        hidden = self._hidden(self._labelled(batch, rows, columns, tokens))[0]
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

    def _split(
        self,
        batch: Mapping[str, torch.Tensor],
        inputs: dict[str, torch.Tensor],
        rows: torch.Tensor,
        columns: torch.Tensor,
    ) -> tuple[TokenBlock, TokenBlock | None, torch.Tensor, tuple[bytes, ...]]:
        """The tokens that every group runs, those before them, the predictions' columns in the first, and the
        rows' keys. All that depends on values is found on the batch's own device, usually the host.
        """
        ids = batch["input_ids"]
        count, width = len(ids), inputs["input_ids"].shape[1]
        seen = torch.ones(count, width, dtype=torch.bool)
        if "attention_mask" in batch:
            seen = batch["attention_mask"][:, :width].cpu() != 0
        inputs = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
        if "position_ids" not in inputs:
            positions = (seen.long().cumsum(dim=1) - 1).clamp(min=0)
            inputs["position_ids"] = positions.to(self.model.device)
        tokens = adapter_of(self.model).config.alora_invocation_tokens
        if tokens is None:
            return self._block(inputs, torch.arange(width).expand(count, -1), seen), None, columns, ()

        ids, rows, columns = ids.cpu(), rows.cpu(), columns.cpu()
        starts = invocation_starts(ids[:, :width], tokens, seen)
        if (starts < 0).any():
            row = int((starts < 0).int().argmax())
            raise ValueError(f"batch: row {row} does not hold the invocation tokens {tokens}")
        if (columns < starts[rows]).any():
            row = int(rows[(columns < starts[rows]).int().argmax()])
            raise ValueError(f"batch: row {row} has a label that is predicted before the invocation tokens")
        last = torch.zeros(count, dtype=torch.int64).scatter_reduce(0, rows, columns, "amax")
        tail = starts[:, None] + torch.arange(int((last - starts).max()) + 1)
        block = self._block(inputs, tail, tail <= torch.maximum(last, starts)[:, None])
        first = seen.int().argmax(dim=1)
        length = int((starts - first).max())
        prefix = None
        if length:
            before = starts[:, None] - length + torch.arange(length)
            prefix = self._block(inputs, before, (before >= first[:, None]))
        keys: tuple[bytes, ...] = ()
        if self.store is not None:
            keys = tuple(
                self._key(ids[row, first[row] : last[row] + 1], int(starts[row] - first[row]))
                for row in range(count)
            )
        return block, prefix, columns - starts[rows], keys

    def _key(self, tokens: torch.Tensor, prefix: int) -> bytes:
        """Names the states of a row of tokens, the first `prefix` of which are before the invocation."""
        assert self._shared is not None
        what = f"{prefix} {self._shared.first} {self.model.dtype}"
        digest = hashlib.blake2b(tokens.numpy().astype("<i8").tobytes(), digest_size=16)
        digest.update(what.encode())
        return digest.digest()

    def _block(
        self, inputs: Mapping[str, torch.Tensor], columns: torch.Tensor, seen: torch.Tensor
    ) -> TokenBlock:
        """The tokens of `inputs` at columns [B, n]; those that are not seen, bool [B, n], are padding."""
        width = inputs["input_ids"].shape[1]
        device = self.model.device
        rows = torch.arange(len(columns))[:, None].to(device)
        index = columns.clamp(0, width - 1).to(device)
        return TokenBlock(
            {name: tensor[rows, index] for name, tensor in inputs.items()},
            None if bool(seen.all()) else seen.to(device),
        )

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
        ids = (torch.arange(2 * width).view(2, width) * 7 + 3) % vocabulary
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        if tokens is not None:
            ids[:, -1 - len(tokens) : -1] = torch.tensor(tokens)
        labels = torch.full_like(ids, IGNORED)
        labels[:, -1] = ids[:, -1]
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        rows, columns, targets = self._positions(batch)
        directions = adapter_of(model).directions
        modes = {module: module.training for module in model.modules()}
        model.eval()
        seeds, coeffs = torch.tensor([1, 2]), torch.tensor([0.1, -0.1])
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
            batch = {"input_ids": tokens, "labels": tokens}
            rows, columns, targets = self._positions(batch)
            plain = LabelledBatch(self._inputs(batch, columns), rows, columns, targets)
            got = self._logits(self._hidden(plain)[0]).float()
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
