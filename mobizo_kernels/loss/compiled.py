"""The layers of a decoder by torch.compile, one graph for all layers of a kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental import _config as symbolic_shapes
from transformers import PreTrainedModel

from mobizo_kernels.lora import adapter_layers, adapter_of, is_wrapped, layers_from_first_adapted

BACKEND: str | Callable[..., Any] = "inductor"
MOST_GRAPHS = 16
"""Of the layers of one class: more are a sign that each layer gets its own."""


class CompiledLayers:
    """Layers of a decoder that run compiled inside a block, and as they are outside of it.

    Rows, tokens and groups are dynamic: batches of other sizes do not compile anew, unless a size is 1. What
    the layers find outside of their arguments, as attributes of modules, may differ from layer to layer.

    Args:
        model: a causal LM of transformers.

    Raises:
        ValueError: if its layers are not found, or are compiled already.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._name, self._model = type(model).__name__, model
        for name, module in model.named_modules():
            if module is model:
                continue  # its `forward` is not called
            if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
                raise ValueError(f"compile=True needs modules that are not compiled, got {name}")
        layers, _ = layers_from_first_adapted(model, adapter_layers(model).values())
        self._forwards = {layer: self._compiled(layer) for layer in layers}

    @contextmanager
    def running(self, but: Collection[nn.Module] = ()) -> Iterator[None]:
        """Let the layers run compiled, all but those in `but`."""
        if is_wrapped(self._model):
            directions = adapter_of(self._model).directions
            mark_dynamic(directions.seeds, 0)
            mark_dynamic(directions.coeffs, 0)
        layers = [layer for layer in self._forwards if layer not in but]
        before = {layer: vars(layer).get("forward") for layer in layers}
        # Sizes that happen to be equal in one batch are not so in the next one.
        with (
            symbolic_shapes.patch(use_duck_shape=False),  # type: ignore[attr-defined]
            dynamo.patch(recompile_limit=MOST_GRAPHS),
        ):
            for layer in layers:
                layer.forward = self._forwards[layer]
            try:
                yield
            finally:
                for layer, forward in before.items():
                    if forward is None:
                        del layer.forward
                    else:
                        layer.forward = forward

    def _compiled(self, layer: nn.Module) -> Callable[..., Any]:
        run = torch.compile(layer.forward, fullgraph=True, backend=BACKEND)

        def forward(*args: Any, **kwargs: Any) -> Any:
            _mark_arguments([*args, *kwargs.values()])
            try:
                return run(*args, **kwargs)
            except TorchDynamoException as error:
                raise RuntimeError(
                    f"compile=True: torch.compile cannot take a layer of {self._name}; use compile=False "
                    f"({error})"
                ) from error

        return forward


def not_compiled(model: nn.Module) -> tuple[nn.Module, bool]:
    """The model inside what torch.compile returned, and whether that, or `model.compile()`, was called."""
    inside: nn.Module = getattr(model, "_orig_mod", model)
    by_itself = getattr(inside, "_compiled_call_impl", None) is not None
    return inside, by_itself or inside is not model


def mark_dynamic(tensor: torch.Tensor | None, *dims: int) -> None:
    """Let sizes of a tensor that a compiled layer sees differ from batch to batch."""
    if tensor is not None:
        for dim in dims:
            torch._dynamo.maybe_mark_dynamic(tensor, dim)


def _mark_arguments(values: Any) -> None:
    """Of tensors [rows, tokens, width], of masks [rows, 1, tokens, tokens], and of position_ids."""
    for value in values:
        if isinstance(value, torch.Tensor):
            mark_dynamic(value, *((0, 2, 3) if value.dim() == 4 else range(min(2, value.dim()))))
        elif isinstance(value, (tuple, list)):
            _mark_arguments(value)
