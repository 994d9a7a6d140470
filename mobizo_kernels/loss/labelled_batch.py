"""Batches as a loss sees them: the tokens that a decoder runs, and what is to be predicted where."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mobizo_kernels.lora import adapter_of, invocation_starts
from mobizo_kernels.loss.rows import Rows
from mobizo_kernels.loss.sharing import TokenBlock


@dataclass(frozen=True)
class LabelledBatch:
    """A batch, and what is to be predicted where in it.

    Attributes:
        inputs: what the decoder takes, each [B, T'], T' being the columns up to the last prediction.
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

    def made_of(self, tensors: Mapping[str, torch.Tensor]) -> LabelledBatch:
        """The same batch of other tensors, which are named as :meth:`tensors` does."""

        def block(part: str, old: TokenBlock | None) -> TokenBlock | None:
            if old is None:
                return None
            inputs = {name: tensors[f"{part}.{name}"] for name in old.inputs}
            return TokenBlock(inputs, None if old.seen is None else tensors[f"{part}.seen"])

        return LabelledBatch(
            {name: tensors[f"inputs.{name}"] for name in self.inputs},
            tensors["rows"], tensors["columns"], tensors["targets"],
            block("block", self.block), block("prefix", self.prefix), self.keys,
        )  # fmt: skip

    def to(self, device: torch.device) -> LabelledBatch:
        """The same on a device."""
        return self.made_of({name: tensor.to(device) for name, tensor in self.tensors().items()})


class BatchReader:
    """Makes labelled batches of a model, on the host.

    Args:
        model: a causal LM of transformers; wrapped, for :meth:`divided`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def whole(self, rows: Rows, targets: torch.Tensor) -> LabelledBatch:
        """Every group runs all tokens up to the last prediction.

        Args:
            rows: of the batch.
            targets: class of the softmax at each prediction, int64 [n].
        """
        return LabelledBatch(rows.inputs, rows.rows, rows.columns, targets)

    def divided(self, rows: Rows, targets: torch.Tensor, states: str | None = None) -> LabelledBatch:
        """With Activated LoRA, the groups run the tokens from the invocation on, and those before run once.

        Args:
            rows: of the batch, one text in each.
            targets: class of the softmax at each prediction, int64 [n].
            states: what the states in a store depend on besides the rows; None if nothing is to be stored.

        Raises:
            ValueError: if a row lacks the invocation tokens, or has a label before them.
        """
        block, prefix, columns, keys = self._split(rows, states)
        return LabelledBatch({}, rows.rows, columns, targets, block, prefix, keys)

    def _split(
        self, batch: Rows, states: str | None
    ) -> tuple[TokenBlock, TokenBlock | None, torch.Tensor, tuple[bytes, ...]]:
        """The tokens that every group runs, those before them, the predictions' columns in the first, and the
        rows' keys.
        """
        ids, rows, columns = batch.inputs["input_ids"], batch.rows, batch.columns
        count, width = ids.shape
        everything = torch.arange(width, device="cpu").expand(count, -1)
        inputs = {**batch.inputs, "position_ids": everything}
        tokens = adapter_of(self._model).config.alora_invocation_tokens
        if tokens is None:
            # What fills a row up comes after its tokens, so it need not be masked.
            return self._block(inputs, everything), None, columns, ()

        starts = invocation_starts(ids, tokens, everything < batch.lengths[:, None])
        if (starts < 0).any():
            row = int((starts < 0).int().argmax())
            raise ValueError(f"batch: row {row} does not hold the invocation tokens {tokens}")
        if (columns < starts[rows]).any():
            row = int(rows[(columns < starts[rows]).int().argmax()])
            raise ValueError(f"batch: row {row} has a label that is predicted before the invocation tokens")
        last = starts.new_zeros(count).scatter_reduce(0, rows, columns, "amax")
        tail = starts[:, None] + torch.arange(int((last - starts).max()) + 1, device="cpu")
        block = self._block(inputs, tail, tail <= torch.maximum(last, starts)[:, None])
        length = int(starts.max())
        prefix = None
        if length:
            before = starts[:, None] - length + torch.arange(length, device="cpu")
            prefix = self._block(inputs, before, before >= 0)
        keys: tuple[bytes, ...] = ()
        if states is not None:
            keys = tuple(
                _key(
                    {name: tensor[row, : last[row] + 1] for name, tensor in inputs.items()},
                    f"{int(starts[row])} {states}",
                )
                for row in range(count)
            )
        return block, prefix, columns - starts[rows], keys

    def _block(
        self, inputs: dict[str, torch.Tensor], columns: torch.Tensor, seen: torch.Tensor | None = None
    ) -> TokenBlock:
        """The tokens of `inputs` at columns [B, n]; those that are not seen, bool [B, n], are padding."""
        index = columns.clamp(0, inputs["input_ids"].shape[1] - 1)
        gathered = {name: tensor.gather(1, index) for name, tensor in inputs.items()}
        return TokenBlock(gathered, None if seen is None or bool(seen.all()) else seen)


def _key(inputs: Mapping[str, torch.Tensor], what: str) -> bytes:
    """Names `what` a store has of a row whose tokens, positions and whatever else there is are `inputs`."""
    digest = hashlib.blake2b(what.encode(), digest_size=16)
    for name, tensor in sorted(inputs.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
