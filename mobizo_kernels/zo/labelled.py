"""Batches as a loss sees them: the tokens that a decoder runs, and what is to be predicted where."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mobizo_kernels.lora import adapter_of, invocation_starts
from mobizo_kernels.sharing import TokenBlock

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


def predictions(batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row and column of each prediction of a batch, and the token to predict there; each int64 [n].

    Raises:
        ValueError: if the batch has no labels or no labelled token.
    """
    if "labels" not in batch or "input_ids" not in batch:
        raise ValueError(f"batch must hold input_ids and labels, got {sorted(batch)}")
    labels, shape = batch["labels"], batch["input_ids"].shape
    if labels.shape != shape:
        raise ValueError(f"labels must have the shape of input_ids, {list(shape)}, got {list(labels.shape)}")
    wanted = labels[:, 1:] != IGNORED
    if "attention_mask" in batch:
        wanted &= batch["attention_mask"].to(labels.device)[:, :-1] != 0
    rows, columns = wanted.nonzero(as_tuple=True)
    if not len(rows):
        raise ValueError("batch has no label after a token that is not padding")
    return rows, columns, labels[rows, columns + 1]


class BatchReader:
    """Makes labelled batches of a model, on its device.

    Whatever depends on values is found out on the batch's own device, usually the host.

    Args:
        model: a causal LM of transformers; wrapped, for :meth:`divided`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters

    def whole(
        self,
        batch: Mapping[str, torch.Tensor],
        rows: torch.Tensor,
        columns: torch.Tensor,
        targets: torch.Tensor,
    ) -> LabelledBatch:
        """Every group runs all tokens up to the last prediction.

        Args:
            batch: B rows, see :class:`mobizo_kernels.zo.LabelledLoss`.
            rows, columns: of each prediction, int64 [n].
            targets: what to predict there, int64 [n].
        """
        device = self._model.device
        inputs = self._inputs(batch, columns)
        return LabelledBatch(inputs, rows.to(device), columns.to(device), targets.to(device))

    def divided(
        self,
        batch: Mapping[str, torch.Tensor],
        rows: torch.Tensor,
        columns: torch.Tensor,
        targets: torch.Tensor,
        states: str | None = None,
    ) -> LabelledBatch:
        """With Activated LoRA, the groups run the tokens from the invocation on, and those before run once.

        Args:
            batch, rows, columns, targets: as for :meth:`whole`.
            states: what the states in a store depend on besides tokens; None if nothing is to be stored.

        Raises:
            ValueError: if a row lacks the invocation tokens, or has a label before them.
        """
        block, prefix, columns, keys = self._split(batch, rows, columns, states)
        device = self._model.device
        return LabelledBatch({}, rows.to(device), columns.to(device), targets.to(device), block, prefix, keys)

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
        return {name: tensor.to(self._model.device) for name, tensor in inputs.items()}

    def _split(
        self,
        batch: Mapping[str, torch.Tensor],
        rows: torch.Tensor,
        columns: torch.Tensor,
        states: str | None,
    ) -> tuple[TokenBlock, TokenBlock | None, torch.Tensor, tuple[bytes, ...]]:
        """The tokens that every group runs, those before them, the predictions' columns in the first, and the
        rows' keys.
        """
        ids, inputs = batch["input_ids"], self._inputs(batch, columns)
        count, width = len(ids), inputs["input_ids"].shape[1]
        seen = torch.ones(count, width, dtype=torch.bool, device="cpu")
        if "attention_mask" in batch:
            seen = batch["attention_mask"][:, :width].cpu() != 0
        inputs = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
        if "position_ids" not in inputs:
            positions = (seen.long().cumsum(dim=1) - 1).clamp(min=0)
            inputs["position_ids"] = positions.to(self._model.device)
        tokens = adapter_of(self._model).config.alora_invocation_tokens
        if tokens is None:
            whole = torch.arange(width, device="cpu").expand(count, -1)
            return self._block(inputs, whole, seen), None, columns, ()

        ids, rows, columns = ids.cpu(), rows.cpu(), columns.cpu()
        starts = invocation_starts(ids[:, :width], tokens, seen)
        if (starts < 0).any():
            row = int((starts < 0).int().argmax())
            raise ValueError(f"batch: row {row} does not hold the invocation tokens {tokens}")
        if (columns < starts[rows]).any():
            row = int(rows[(columns < starts[rows]).int().argmax()])
            raise ValueError(f"batch: row {row} has a label that is predicted before the invocation tokens")
        last = starts.new_zeros(count).scatter_reduce(0, rows, columns, "amax")
        tail = starts[:, None] + torch.arange(int((last - starts).max()) + 1, device="cpu")
        block = self._block(inputs, tail, tail <= torch.maximum(last, starts)[:, None])
        first = seen.int().argmax(dim=1)
        length = int((starts - first).max())
        prefix = None
        if length:
            before = starts[:, None] - length + torch.arange(length, device="cpu")
            prefix = self._block(inputs, before, (before >= first[:, None]))
        keys: tuple[bytes, ...] = ()
        if states is not None:
            own = {name: tensor.cpu() for name, tensor in inputs.items()}
            keys = tuple(
                _key(
                    {name: tensor[row, first[row] : last[row] + 1] for name, tensor in own.items()},
                    f"{int(starts[row] - first[row])} {states}",
                )
                for row in range(count)
            )
        return block, prefix, columns - starts[rows], keys

    def _block(
        self, inputs: Mapping[str, torch.Tensor], columns: torch.Tensor, seen: torch.Tensor
    ) -> TokenBlock:
        """The tokens of `inputs` at columns [B, n]; those that are not seen, bool [B, n], are padding."""
        width = inputs["input_ids"].shape[1]
        device = self._model.device
        rows = torch.arange(len(columns), device=device)[:, None]
        index = columns.clamp(0, width - 1).to(device)
        return TokenBlock(
            {name: tensor[rows, index] for name, tensor in inputs.items()},
            None if bool(seen.all()) else seen.to(device),
        )


def _key(inputs: Mapping[str, torch.Tensor], what: str) -> bytes:
    """Names `what` a store has of a row whose tokens, positions and whatever else there is are `inputs`."""
    digest = hashlib.blake2b(what.encode(), digest_size=16)
    for name, tensor in sorted(inputs.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
