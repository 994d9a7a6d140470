"""The groups of a step share the layers below the first adapted one: their rows are copied only there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.lora import layers_from_first_adapted


class Widening:
    """Copies the rows of a forward, group after group, on their way into the first module with an adapter.

    That module is a layer of the decoder, or the decoder as a whole where nothing is adapted or an adapter is
    outside of its layers. An adapter of the LM head needs no copies of what is below.

    Args:
        model: a decoder of transformers; hooks are put on its modules.
        adapted: paths of the adapted linears.
    """

    def __init__(self, model: PreTrainedModel, adapted: Sequence[str]) -> None:
        self._rows, self._groups = 1, 1
        self._copies: dict[torch.Tensor, torch.Tensor] = {}
        for module in _from_first_adapted(model, adapted):
            module.register_forward_pre_hook(self._widen, with_kwargs=True)

    def start(self, rows: int, groups: int) -> None:
        """Tell the forward that follows of the rows that it is given, and how many copies of them to make."""
        self._rows, self._groups, self._copies = rows, groups, {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """tensor [rows, ...] -> [groups * rows, ...]; any other, and one of less than two sizes, is kept."""
        rows = tensor.shape[0] if tensor.dim() > 1 else None
        # A dynamic size is not compared: the graph would be fixed to the outcome.
        if self._groups == 1 or not isinstance(rows, int) or rows != self._rows:
            return tensor
        if tensor not in self._copies:
            self._copies[tensor] = self.copies(tensor, self._groups)
        return self._copies[tensor]

    def copies(self, tensor: torch.Tensor, groups: int) -> torch.Tensor:
        """tensor [rows, ...] -> [groups * rows, ...], copy after copy."""
        return tensor.repeat(groups, *[1] * (tensor.dim() - 1))

    def _widen(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return _mapped(self, args), _mapped(self, kwargs)


def _from_first_adapted(model: PreTrainedModel, adapted: Sequence[str]) -> list[nn.Module]:
    """What is called with rows to widen: the layers from the first adapted one on, or the decoder."""
    try:
        layers, first = layers_from_first_adapted(model, [model.get_submodule(path) for path in adapted])
    except ValueError:
        return [model.base_model]
    return layers[first:] if adapted else [model.base_model]


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`value` with `function` applied to every tensor in its tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _mapped(function, item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(function, item) for item in value)
    return value
