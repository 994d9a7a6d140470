"""Activated LoRA (arXiv 2504.12397): adapters that act from the invocation tokens on, and nowhere before.

The keys and values of the tokens before are then those of the base model. A model that is called as usual
gets its adapters masked here; `mobizo_kernels.loss.sharing` makes use of the shared part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from mobizo_kernels.lora.linear import Directions, MPLoRALinear


def invocation_starts(
    input_ids: torch.Tensor, tokens: Sequence[int], attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The column where the last occurrence of `tokens` begins in each row, int64 [rows]; -1 if there is none.

    Args:
        input_ids: int64 [rows, T].
        tokens: the invocation tokens.
        attention_mask: [rows, T]; an occurrence that begins in padding is none.
    """
    rows, width = input_ids.shape
    length = len(tokens)
    if width < length:
        return torch.full((rows,), -1, dtype=torch.int64, device=input_ids.device)
    wanted = torch.tensor(list(tokens), device=input_ids.device)
    found = (input_ids.unfold(1, length, 1) == wanted).all(dim=2)
    if attention_mask is not None:
        found &= attention_mask[:, : found.shape[1]] != 0
    columns = torch.arange(found.shape[1], device=input_ids.device)
    return torch.where(found, columns, -1).amax(dim=1)


def install_activation(model: nn.Module, config: LoraConfig, directions: Directions) -> list[Any]:
    """Let the adapters of a model act from the invocation tokens on, whenever it is called; its hooks.

    Nothing is installed without `config.alora_invocation_tokens`. The adapters of a row without these tokens
    are off, as in PEFT; once they were on, they stay on for what follows in a key-value cache.
    """
    tokens = config.alora_invocation_tokens
    if tokens is None:
        return []
    activation = _Activation(tokens, directions)
    decoder: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    hooks = [
        decoder.register_forward_pre_hook(activation.begin, with_kwargs=True),
        decoder.register_forward_hook(activation.end, always_call=True),
    ]
    if decoder is not model:  # an adapted LM head has its turn when the decoder is done
        hooks += [
            model.register_forward_pre_hook(activation.begin_model, with_kwargs=True),
            model.register_forward_hook(activation.end_model, always_call=True),
        ]
    return hooks


class _Activation:
    def __init__(self, tokens: Sequence[int], directions: Directions) -> None:
        self._tokens, self._directions = list(tokens), directions
        self._invoked: torch.Tensor | None = None  # bool [rows], of the last call
        self._mine = False
        self._head: MPLoRALinear | None = None  # of the model whose forward runs
        self._kept: torch.Tensor | None = None  # the tokens that its head sees, where they are not the last

    def begin_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        head = module.get_output_embeddings()  # type: ignore[operator]
        kept = kwargs.get("logits_to_keep")
        self._kept = kept if isinstance(kept, torch.Tensor) else None
        self._head = head if isinstance(head, MPLoRALinear) else None

    def end_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._head is not None:
            self._head.active = None
        self._head = self._kept = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        directions = self._directions
        if directions.active is not None:  # somebody knows better
            return
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if input_ids is None:
            raise ValueError("a model with alora_invocation_tokens needs input_ids to find them in")
        starts = invocation_starts(input_ids, self._tokens)
        columns = torch.arange(input_ids.shape[1], device=input_ids.device)
        active = (columns >= starts[:, None]) & (starts >= 0)[:, None]
        cache, earlier = kwargs.get("past_key_values"), self._invoked
        goes_on = cache is not None and cache.get_seq_length() > 0
        if goes_on and earlier is not None and len(earlier) == len(active):
            active |= earlier[:, None]
        self._invoked = active[:, -1]
        directions.active, self._mine = active, True

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._mine:
            if self._head is not None and isinstance(active := self._directions.active, torch.Tensor):
                self._head.active = active if self._kept is None else active[:, self._kept]
            self._directions.active, self._mine = None, False
