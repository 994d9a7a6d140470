"""Keys, values and hidden states that no adapter changes: of a batch, of a row, and a store of many rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mobizo_kernels.files.file import written_whole

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class RowStates:
    """What the base model makes of one row.

    Attributes:
        layers: keys and values [key-value heads, tokens before the invocation, D] of each layer from the
            first adapted one on.
        hidden: what enters the first adapted layer at the tokens from the invocation on, [n, H].
    """

    layers: dict[int, KeysAndValues]
    hidden: torch.Tensor

    @classmethod
    def cut(cls, layers: dict[int, KeysAndValues], hidden: torch.Tensor, before: int) -> RowStates:
        """Out of the states [1, ...] of a whole row, of which the first `before` tokens are the prefix."""
        return cls(
            {
                layer: (key[0, :, :before].clone(), value[0, :, :before].clone())
                for layer, (key, value) in layers.items()
            },
            hidden[0, before:].clone(),
        )

    @property
    def bytes(self) -> int:
        """How much memory it takes."""
        tensors = [self.hidden, *(tensor for pair in self.layers.values() for tensor in pair)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class BaseStates:
    """What the base model makes of a batch.

    Attributes:
        layers: keys and values [B, key-value heads, P, D] by layer.
        hidden: what enters the first adapted layer, [B, n, H], or None if that is yet to be computed.
    """

    layers: dict[int, KeysAndValues]
    hidden: torch.Tensor | None = None

    @classmethod
    def of_rows(cls, rows: Sequence[RowStates], length: int, width: int) -> BaseStates:
        """The batch of these rows: prefixes padded on the left to `length`, tails on the right to `width`."""
        layers = {
            layer: (
                _padded([row.layers[layer][0] for row in rows], length, left=True),
                _padded([row.layers[layer][1] for row in rows], length, left=True),
            )
            for layer in rows[0].layers
        }
        return cls(layers, _padded([row.hidden for row in rows], width, left=False))


def _padded(tensors: Sequence[torch.Tensor], length: int, *, left: bool) -> torch.Tensor:
    """Tensors [..., n, D] of several n, stacked, with zeros to `length`."""
    if all(tensor.shape[-2] == length for tensor in tensors):
        return torch.stack(list(tensors))
    shape = (len(tensors), *tensors[0].shape[:-2], length, tensors[0].shape[-1])
    out = tensors[0].new_zeros(shape)
    for row, tensor in enumerate(tensors):
        n = tensor.shape[-2]
        out[row, ..., length - n if left else 0 : length if left else n, :] = tensor
    return out


class StateStore:
    """Keeps the states of rows from one epoch to the next, as many as fit.

    The states of a row are the same to the bit whether they were kept or are made again, so what fits does
    not decide on a run. Each row is computed alone for that, which takes longer than a batch of short rows.

    Rows come round again in a fixed cycle, so the first ones that fit stay: to make room for a new one by
    dropping an old one would keep nothing long enough to be of use.

    Args:
        max_bytes: most memory to use.
        directory: keeps the rows that do not fit, and those of earlier runs, as one safetensors file each;
            it has to be one model's own. None for memory alone.
        max_directory_bytes: most disk to use.

    Raises:
        ValueError: if a limit is negative.
        OSError: if `directory` cannot be made.
    """

    def __init__(
        self,
        max_bytes: int = 2**30,
        directory: Path | str | None = None,
        max_directory_bytes: int = 2**34,
    ) -> None:
        for name, limit in (("max_bytes", max_bytes), ("max_directory_bytes", max_directory_bytes)):
            if limit < 0:
                raise ValueError(f"{name} must be at least 0, got {limit}")
        self._rows: dict[bytes, RowStates] = {}
        self._room = max_bytes
        self._directory = None if directory is None else Path(directory)
        self._directory_room = max_directory_bytes
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._directory_room -= sum(file.stat().st_size for file in self._directory.glob("*.safetensors"))

    def __len__(self) -> int:
        """Rows in memory."""
        return len(self._rows)

    def get(self, key: bytes) -> RowStates | None:
        """The states of a row, or None."""
        states = self._rows.get(key)
        if states is None and self._directory is not None:
            states = self._read(key)
            if states is not None:
                self._hold(key, states)
        return states

    def put(self, key: bytes, states: RowStates) -> bool:
        """Keep the states of a row if there is room; whether there was.

        Raises:
            OSError: if the directory cannot be written.
        """
        if self._hold(key, states):
            return True
        if self._directory is None or self._directory_room < states.bytes:
            return False
        tensors = {"hidden": states.hidden.contiguous()}
        for layer, (keys, values) in states.layers.items():
            tensors[f"{layer}.keys"], tensors[f"{layer}.values"] = keys.contiguous(), values.contiguous()
        with written_whole(self._file(key)) as scratch:
            save_file(tensors, scratch)
        self._directory_room -= states.bytes
        return True

    def _hold(self, key: bytes, states: RowStates) -> bool:
        if states.bytes > self._room:
            return False
        self._rows[key] = states
        self._room -= states.bytes
        return True

    def _read(self, key: bytes) -> RowStates | None:
        try:
            tensors = load_file(self._file(key))
            hidden = tensors.pop("hidden")
            layers = sorted({int(name.split(".")[0]) for name in tensors})
            return RowStates({n: (tensors[f"{n}.keys"], tensors[f"{n}.values"]) for n in layers}, hidden)
        except (FileNotFoundError, SafetensorError, KeyError, ValueError):
            return None  # it is made again

    def _file(self, key: bytes) -> Path:
        assert self._directory is not None
        return self._directory / f"{key.hex()}.safetensors"
