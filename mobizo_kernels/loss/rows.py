"""The rows of a batch as any causal decoder takes them: beginning at column 0, without an attention mask.

What follows a token has no influence on it, so it does not matter what fills a row up. Decoders differ in
what they make of a mask and of padding on the left, and some look at no mask at all; here all agree.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from mobizo_kernels.conventions import IGNORED

_PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""What transformers' collators may say of packed rows besides `position_ids`."""


class NothingLabelled(ValueError):
    """A batch without a token to predict."""


@dataclass(frozen=True)
class Rows:
    """Rows on the host, and what is to be predicted in them.

    Attributes:
        inputs: what the decoder takes, each [B, T'], T' being the columns up to the last prediction.
        lengths: tokens of each row, int64 [B]; the columns after them are filled up.
        rows: row of each prediction, int64 [n].
        columns: column of each prediction, int64 [n].
        tokens: to predict there, int64 [n].
        one_text: each row is one text, its positions are 0, 1, 2, ... Otherwise `inputs` are as they came,
            with their `position_ids`, and `lengths` mean nothing.
    """

    inputs: dict[str, torch.Tensor]
    lengths: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    tokens: torch.Tensor
    one_text: bool


class RowReader:
    """Reads the batches of a model.

    Args:
        model: a causal LM of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = type(model).__name__
        names = _named(model.base_model.forward)
        self._names = names if "input_ids" in names else _named(model.forward)
        embedding = model.get_input_embeddings()
        self._vocabulary = getattr(embedding, "num_embeddings", None)
        self._pad = getattr(model.config.get_text_config(), "pad_token_id", None)

    def __call__(self, batch: Mapping[str, Any], never: list[int] | None = None) -> Rows:
        """The rows of a batch, see :class:`mobizo_kernels.loss.LabelledLoss`.

        Args:
            batch: B rows.
            never: tokens that no row is filled up with.

        Raises:
            ValueError: naming the entry of `batch` that cannot be understood, or if no token is labelled.
        """
        ids, labels, mask = _checked(batch)
        self._check_tokens(ids if mask is None else ids[mask])
        inputs = {"input_ids": ids, **self._others(batch, ids, mask)}
        one_text = _count_from_zero(inputs.get("position_ids"), mask)
        if one_text and (name := _says_packed(batch, len(ids))):
            raise ValueError(
                f"batch: {name} tells of several texts in a row, but no position_ids that begin anew at each"
            )
        lengths = torch.full((len(ids),), ids.shape[1], device="cpu") if mask is None else mask.sum(dim=1)
        if mask is not None:
            labels = labels.masked_fill(~mask, IGNORED)
        if one_text:
            inputs.pop("position_ids", None)
            if mask is not None and not bool(mask.all()):
                order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
                inputs = {name: tensor.gather(1, order) for name, tensor in inputs.items()}
                labels = labels.gather(1, order)
                after = torch.arange(ids.shape[1], device="cpu") >= lengths[:, None]
                inputs["input_ids"].masked_fill_(after, self._filler(never or []))
        elif mask is not None:
            inputs["attention_mask"] = batch["attention_mask"].cpu()
            labels = labels.masked_fill(~mask.roll(1, dims=1), IGNORED)
        rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        if not len(rows):
            raise NothingLabelled("batch has no label after a token that is not padding")
        width = int(columns.max()) + 1
        tokens = labels[rows, columns + 1]
        inputs = {name: tensor[:, :width] for name, tensor in inputs.items()}
        return Rows(inputs, lengths.clamp(max=width), rows, columns, tokens, one_text)

    def _filler(self, never: list[int]) -> int:
        return next(token for token in range(len(never) + 2) if token != self._pad and token not in never)

    def _others(
        self, batch: Mapping[str, Any], ids: torch.Tensor, mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """What else the decoder takes by name; the rest is left out, as by transformers' Trainer."""
        others = {}
        for name, value in batch.items():
            if value is None or name in ("input_ids", "labels", "attention_mask", *_PACKING):
                continue
            if name == "position_ids" and isinstance(value, torch.Tensor) and value.shape == ids[:1].shape:
                value = value.expand_as(ids)  # one row for all, as decoders take it
            if name == "position_ids" and name not in self._names:
                if not _count_from_zero(_per_token(name, value, ids), mask):
                    raise ValueError(f"batch: {self._model} takes no position_ids but 0, 1, 2, ...")
            elif name in self._names:
                others[name] = _per_token(name, value, ids)
        return others

    def _check_tokens(self, ids: torch.Tensor) -> None:
        if self._vocabulary is None:
            return
        outside = ids[(ids < 0) | (ids >= self._vocabulary)]
        if len(outside):
            raise ValueError(f"input_ids must be in [0, {self._vocabulary}), got {int(outside[0])}")


def _named(forward: Any) -> set[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, value in inspect.signature(forward).parameters.items() if value.kind in named}


def _checked(batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """input_ids and labels, int64 [B, T], and bool [B, T] where no padding is."""
    if "labels" not in batch or "input_ids" not in batch:
        raise ValueError(f"batch must hold input_ids and labels, got {sorted(batch)}")
    for name in ("input_ids", "labels", "attention_mask"):
        value = batch.get(name)
        if value is None and name == "attention_mask":
            continue
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} must be a tensor [B, T], got {type(value).__name__}")
        if name != "attention_mask" and (value.is_floating_point() or value.dtype == torch.bool):
            raise ValueError(f"{name} must be int64, got {value.dtype}")
    ids = batch["input_ids"]
    if ids.dim() != 2:
        raise ValueError(f"input_ids must be [B, T], got {list(ids.shape)}")
    for name in ("labels", "attention_mask"):
        value = batch.get(name)
        if value is not None and value.shape != ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids, {list(ids.shape)}, got {list(value.shape)}"
            )
    mask = batch.get("attention_mask")
    if mask is not None:
        mask = mask.cpu()
        neither = mask[(mask != 0) & (mask != 1)]
        if len(neither):
            raise ValueError(
                f"attention_mask must be 1 at tokens and 0 at padding, got {neither[0].item()}; "
                "position_ids tell several texts in a row apart"
            )
        mask = mask != 0
    return ids.cpu().long(), batch["labels"].cpu().long(), mask


def _per_token(name: str, value: Any, ids: torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and value.shape == ids.shape:
        return value.cpu()
    got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    raise ValueError(f"batch: {name} must be one value for each token, {list(ids.shape)}, got {got}")


def _count_from_zero(positions: torch.Tensor | None, mask: torch.Tensor | None) -> bool:
    """Whether the positions of each row's tokens are 0, 1, 2, ..."""
    if positions is None:
        return True
    if mask is None:
        return bool((positions == torch.arange(positions.shape[1], device="cpu")).all())
    return bool((positions == mask.cumsum(dim=1) - 1)[mask].all())


def _says_packed(batch: Mapping[str, Any], rows: int) -> str | None:
    """The name of what says that rows hold several texts, if anything does."""
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if isinstance(batch.get(name), torch.Tensor) and batch[name].numel() > rows + 1:
            return name
    if isinstance(batch.get("seq_idx"), torch.Tensor) and bool((batch["seq_idx"] > 0).any()):
        return "seq_idx"
    return None
