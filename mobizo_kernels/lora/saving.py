"""`save_pretrained` of a wrapped model: transformers would write a checkpoint that no model can load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.lora.peft_save import save_adapter
from mobizo_kernels.lora.targets import plain_name

_METHOD = "save_pretrained"
_PEFT_METHODS = (
    "add_adapter", "delete_adapter", "disable_adapter", "load_adapter", "merge_adapter", "merge_and_unload",
    "set_adapter", "unload",
)  # fmt: skip


def install_saving(model: nn.Module) -> None:
    """Let `save_pretrained` of a wrapped model write its adapter, and that of its parts say what to do."""
    whole = getattr(model, "_orig_mod", model)  # torch.compile leaves attributes to what it compiles
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module)[_METHOD] = _AdapterSaver(module) if module is whole else _Refusal(module)


def remove_saving(model: nn.Module) -> None:
    """Give transformers' own `save_pretrained` back."""
    for module in model.modules():
        if isinstance(vars(module).get(_METHOD), (_AdapterSaver, _Refusal)):
            del vars(module)[_METHOD]


def install_peft_saving(outer: PeftModel, model: nn.Module) -> None:
    """Let `save_pretrained` of the PeftModel around a wrapped model write the adapter, and what would look
    for adapters of PEFT's say what to do.
    """
    vars(outer)[_METHOD] = _AdapterSaver(model)
    for name in _PEFT_METHODS:
        vars(outer)[name] = _PeftRefusal(name)


def remove_peft_saving(outer: PeftModel) -> None:
    """Give PEFT's own methods back."""
    for name in (_METHOD, *_PEFT_METHODS):
        vars(outer).pop(name, None)


class _AdapterSaver:
    """What `save_pretrained` is on a wrapped model. An object, so that copies of the model save their own."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **_: Any,
    ) -> None:
        """Write the adapter, see :func:`mobizo_kernels.save_adapter`; the base model is not written.

        Args:
            save_directory: receives adapter_config.json and adapter_model.safetensors.
            is_main_process: False writes nothing.
            state_dict: as Trainer passes it; its A and B have to be those of the model.
            push_to_hub: has to be False; `model.push_to_hub(...)` works.
            _: what transformers' own method takes and an adapter has no use for.
        """
        if push_to_hub:
            raise ValueError("save_pretrained of a wrapped model needs push_to_hub=False: use push_to_hub()")
        if state_dict is not None:
            given = {plain_name(name): tensor for name, tensor in state_dict.items()}
            for name, tensor in self._model.state_dict().items():
                own = plain_name(name).endswith((".lora_a", ".lora_b"))
                if own and not _equal(given.get(plain_name(name)), tensor):
                    raise ValueError(
                        f"state_dict must hold the adapter of the model, got another {plain_name(name)}"
                    )
        if is_main_process:
            save_adapter(self._model, save_directory)


class _Refusal:
    """What `save_pretrained` is on a part of a wrapped model."""

    def __init__(self, part: PreTrainedModel) -> None:
        self._part = part

    def __call__(self, *_: Any, **__: Any) -> None:
        raise ValueError(
            f"{type(self._part).__name__} is part of a wrapped model: save the adapter of the whole with "
            "save_adapter, or call unwrap first"
        )


class _PeftRefusal:
    """What a method of a PeftModel is while its adapter is taken over."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: Any, **__: Any) -> None:
        raise ValueError(f"{self._name}: the adapter is taken over by mobizo; call to_peft(model) first")


def _equal(given: torch.Tensor | None, tensor: torch.Tensor) -> bool:
    return given is not None and torch.equal(given.to(tensor.device), tensor)
