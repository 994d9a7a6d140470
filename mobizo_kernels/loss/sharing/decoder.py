"""A decoder that runs G groups of a batch and computes once what is the same in all of them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.lora import adapter_layers, adapter_of, layers_from_first_adapted
from mobizo_kernels.loss.compiled import CompiledLayers
from mobizo_kernels.loss.sharing.attention import AttentionPass, LayerPass, Reached, attending
from mobizo_kernels.loss.sharing.states import BaseStates, KeysAndValues, RowStates, StateStore


@dataclass(frozen=True)
class TokenBlock:
    """Successive tokens of B rows.

    Attributes:
        inputs: what the decoder takes of them: `input_ids`, `position_ids`, ..., each [B, n, ...].
        seen: bool [B, n], False where a token is padding; None if none is.
    """

    inputs: dict[str, torch.Tensor]
    seen: torch.Tensor | None = None

    def row(self, row: int) -> TokenBlock:
        """One row of it, without its padding."""
        tokens = slice(None) if self.seen is None else self.seen[row]
        return TokenBlock({name: tensor[row, tokens][None] for name, tensor in self.inputs.items()})


class SharedDecoder:
    """The decoder of a wrapped model, for G groups of the same B rows.

    Layers below the first adapted one run over the B rows; there the rows widen to G * B. With Activated
    LoRA (arXiv 2504.12397) the tokens before the invocation run once over the B rows as well, without
    adapters, and every group attends to their keys and values, which are never copied per group.

    Args:
        model: a wrapped causal LM of transformers.

    Attributes:
        compiled: its layers, to run compiled; None to run them as they are.
        first: the layer before which the rows widen, the first one with an adapter.

    Raises:
        ValueError: if the model's layers, attention or positions are not of a known kind.

    Calls raise ValueError if a layer keeps something else of the tokens before than keys and values.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        name = type(model).__name__
        self._decoder = model.base_model
        self.compiled: CompiledLayers | None = None
        self._directions = adapter_of(model).directions
        if hasattr(self._decoder, "_orig_mod"):
            raise ValueError(f"the decoder of {name} is compiled as a whole")
        if "position_ids" not in inspect.signature(self._decoder.forward).parameters:
            raise ValueError(f"{name} takes no position_ids")
        if getattr(model.config.get_text_config(), "attention_chunk_size", None) is not None:
            raise ValueError(f"{name} attends within chunks")
        self._changes_at = _changes_at(model.config.get_text_config())
        self._has_prefix = adapter_of(model).config.alora_invocation_tokens is not None
        self._layers, first = layers_from_first_adapted(model, adapter_layers(model).values())
        self.first = min(first, len(self._layers) - 1)  # if only the LM head is adapted
        modules = [module for layer in self._layers for module in layer.modules()]
        indices = {module: getattr(module, "layer_idx", None) for module in modules}
        self._attentions = {module: index for module, index in indices.items() if isinstance(index, int)}
        with_configs = [module for module in self._attentions if hasattr(module, "config")]
        if not with_configs:
            raise ValueError(f"the attention of {name} has no layer_idx and config")
        owners: list[Any] = [self._decoder, *with_configs]
        self._configs = list({id(owner.config): owner.config for owner in owners}.values())

    def __call__(
        self,
        tail: TokenBlock,
        groups: int,
        prefix: TokenBlock | None = None,
        *,
        store: StateStore | None = None,
        keys: Sequence[bytes] = (),
    ) -> torch.Tensor:
        """The last hidden states of `tail` in every group, [G * B, n, H], group after group.

        Args:
            tail: the tokens on which the adapters act.
            groups: G.
            prefix: the tokens before, padded on the left; None if there are none.
            store: keeps what does not depend on the adapter, for the next time.
            keys: of the rows in `store`, [B].
        """
        if store is not None and prefix is not None:
            base = self._kept(tail, prefix, store, keys)
        else:
            base = BaseStates({} if prefix is None else self._prefix(prefix))
        tokens = AttentionPass(tail.inputs["position_ids"], tail.seen)
        if prefix is not None:
            tokens.prefix_positions, tokens.prefix_seen = prefix.inputs["position_ids"], prefix.seen
        copies = torch.empty(groups, device="cpu")
        passes = {
            module: LayerPass(tokens, base.layers.get(layer), copies if layer >= self.first else None)
            for module, layer in self._attentions.items()
        }
        rows = len(tail.inputs["input_ids"])
        with self._directions.acting(True), attending(self._configs, passes), ExitStack() as stack:
            if base.hidden is not None:
                stack.enter_context(self._skipping_to(base.hidden))
            stack.enter_context(self._widening(rows, groups))
            skipped = self._layers[: self.first] if base.hidden is not None else []
            return self._run(tail, passes.values(), skipped)

    def takes(self, length: int) -> bool:
        """Whether rows of `length` tokens give what they give as a whole: with keys that were rotated before
        the tokens after them were known, they do not once the rotation changes with the length.
        """
        return not self._has_prefix or self._changes_at is None or length < self._changes_at

    def _run(
        self, block: TokenBlock, passes: Iterable[LayerPass], uncompiled: Collection[nn.Module]
    ) -> torch.Tensor:
        with ExitStack() as stack:
            if self.compiled is not None:
                for state in passes:
                    state.mark_dynamic()
                stack.enter_context(self.compiled.running(uncompiled))
            states: torch.Tensor = self._decoder(**block.inputs, use_cache=False).last_hidden_state
            return states

    def _prefix(self, prefix: TokenBlock) -> dict[int, KeysAndValues]:
        """Keys and values of the base model at the tokens of the prefix, by layer."""
        tokens = AttentionPass(prefix.inputs["position_ids"], prefix.seen)
        last = max(self._attentions.values())
        passes = {
            module: LayerPass(tokens, record=True, last=layer == last)
            for module, layer in self._attentions.items()
        }
        with self._directions.acting(False), attending(self._configs, passes), suppress(Reached):
            # No graph ends in the middle of its layer.
            self._run(prefix, passes.values(), self._layers[-1:])
        found = {
            self._attentions[module]: state.recorded
            for module, state in passes.items()
            if state.recorded is not None
        }
        without = [layer for layer in range(len(self._layers)) if layer not in found]
        if without:
            raise ValueError(f"layer {without[0]} has no keys and values of its own")
        return found

    def _kept(
        self, tail: TokenBlock, prefix: TokenBlock, store: StateStore, keys: Sequence[bytes]
    ) -> BaseStates:
        """The states of all rows; those that `store` lacks are computed and given to it."""
        rows = []
        for row, key in enumerate(keys):
            states = store.get(key)
            if states is None:
                states = self._row_states(prefix.row(row), tail.row(row))
                store.put(key, states)
            rows.append(states)
        width = tail.inputs["input_ids"].shape[1]
        length = prefix.inputs["input_ids"].shape[1]
        return BaseStates.of_rows(rows, length, width)

    def _row_states(self, prefix: TokenBlock, tail: TokenBlock) -> RowStates:
        """What the base model makes of one row, [1, P] and [1, n] tokens without padding.

        The row runs alone: beside others its last bits would depend on how many they are and how long, for so
        do the blocks of a product. A row that is made again, in another batch or by a run that was resumed,
        has to be the same.
        """
        before = prefix.inputs["input_ids"].shape[1]
        row = TokenBlock(
            {name: torch.cat([tokens, tail.inputs[name]], dim=1) for name, tokens in prefix.inputs.items()}
        )
        entering: list[torch.Tensor] = []

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering.append(args[0] if args else kwargs["hidden_states"])

        hook = self._layers[self.first].register_forward_pre_hook(note, with_kwargs=True)
        try:
            layers = self._prefix(row)
        finally:
            hook.remove()
        upper = {layer: states for layer, states in layers.items() if layer >= self.first}
        return RowStates.cut(upper, entering[0], before)

    @contextmanager
    def _skipping_to(self, hidden: torch.Tensor) -> Iterator[None]:
        """Enter the decoder at the first adapted layer, with `hidden` [B, n, H]."""

        def through(states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return states

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        lower = self._layers[: self.first]
        hook = self._layers[self.first].register_forward_pre_hook(enter, with_kwargs=True)
        for layer in lower:
            layer.forward = through
        try:
            yield
        finally:
            hook.remove()
            for layer in lower:
                del layer.forward

    @contextmanager
    def _widening(self, rows: int, groups: int) -> Iterator[None]:
        """Repeat whatever has `rows` rows for each group, from the first adapted layer on."""
        copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def widened(value: Any) -> Any:
            if isinstance(value, (tuple, list)):
                return type(value)(widened(item) for item in value)
            if not isinstance(value, torch.Tensor) or value.dim() < 2 or len(value) != rows:
                return value
            if id(value) not in copies:  # the original is kept too, or another could get its id
                copies[id(value)] = value, torch.cat([value] * groups)
            return copies[id(value)][1]

        def widen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            return widened(args), {name: widened(value) for name, value in kwargs.items()}

        def widen_later(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            # The hidden states are wide by now, also where that is as many rows as before.
            if args:
                return (args[0], *widened(args[1:])), _widened_but_hidden(kwargs, widened)
            return args, _widened_but_hidden(kwargs, widened)

        hooks = [
            layer.register_forward_pre_hook(widen if index == 0 else widen_later, with_kwargs=True)
            for index, layer in enumerate(self._layers[self.first :])
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _changes_at(config: Any) -> int | None:
    """Length from which on a rotary embedding is another one for all tokens; None if there is none."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [found, *(value for value in found.values() if isinstance(value, dict))]  # some have one by layer
    changing = [kind for kind in kinds if str(kind.get("rope_type")) in ("dynamic", "longrope")]
    lengths = [kind.get("original_max_position_embeddings") for kind in changing]
    return min([config.max_position_embeddings, *filter(None, lengths)]) if changing else None


def _widened_but_hidden(kwargs: dict[str, Any], widened: Any) -> dict[str, Any]:
    return {name: value if name == "hidden_states" else widened(value) for name, value in kwargs.items()}
