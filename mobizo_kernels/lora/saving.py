"""`save_pretrained` of a wrapped model: transformers would write a checkpoint that no model can load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.errors import listed
from mobizo_kernels.lora.adapter import adapter_of
from mobizo_kernels.lora.peft_save import save_adapter
from mobizo_kernels.lora.targets import plain_name

_METHOD = "save_pretrained"
_PEFT_METHODS = (
    "add_adapter", "add_weighted_adapter", "delete_adapter", "disable_adapter", "load_adapter",
    "merge_adapter", "set_adapter",
)  # fmt: skip
_LAST_METHODS = ("merge_and_unload", "unload")  # after which there is no adapter to tune any more


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


def install_peft_methods(
    outer: PeftModel, model: nn.Module, name: str, give_back: Callable[[nn.Module], PeftModel]
) -> None:
    """Let `save_pretrained` of the PeftModel around a wrapped model write its adapters, what ends in a model
    without adapters give the tuned one back first, and what else would look for it say what to do.

    Args:
        outer: the PeftModel.
        model: the wrapped model inside.
        name: of the tuned adapter.
        give_back: :func:`mobizo_kernels.to_peft`.
    """
    vars(outer)[_METHOD] = _PeftSaver(outer, model, name)
    for method in _PEFT_METHODS:
        vars(outer)[method] = _PeftRefusal(method)
    for method in _LAST_METHODS:
        vars(outer)[method] = _GivenBackFirst(outer, method, give_back)


def remove_peft_methods(outer: PeftModel) -> None:
    """Give PEFT's own methods back."""
    for name in (_METHOD, *_PEFT_METHODS, *_LAST_METHODS):
        vars(outer).pop(name, None)


def saved_adapter(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Where `save_pretrained(directory)` of a wrapped model, or of the PeftModel around it, has the tuned
    adapter: an adapter of PEFT's that is not called "default" has a directory of its name in there.
    """
    home = adapter_of(model).home
    return Path(directory) if home is None else _place(directory, home.name)


def _place(directory: str | os.PathLike[str], name: str) -> Path:
    return Path(directory) / ("" if name == "default" else name)


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


class _PeftSaver:
    """What `save_pretrained` is on the PeftModel around a wrapped model."""

    def __init__(self, outer: PeftModel, model: nn.Module, name: str) -> None:
        self._outer, self._model, self._name = outer, model, name

    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        """Write the adapters to where PEFT writes them: the tuned one as a wrapped model does, the others as
        PEFT does.

        Args:
            save_directory: receives the files of adapter "default", and a directory for each other adapter.
            safe_serialization: has to be True.
            selected_adapters: names; all by default.
            options: as of `save_pretrained` of a wrapped model.
        """
        known = list(self._outer.peft_config)
        selected = known if selected_adapters is None else list(selected_adapters)
        if unknown := [name for name in selected if name not in known]:
            raise ValueError(f"selected_adapters must be of {listed(known)}, got {listed(unknown)}")
        if not safe_serialization:
            raise ValueError("save_pretrained of a wrapped model needs safe_serialization=True")
        if self._name in selected:
            _AdapterSaver(self._model)(_place(save_directory, self._name), **options)
        if others := [name for name in selected if name != self._name]:
            with self._linears_of_peft():
                type(self._outer).save_pretrained(
                    self._outer,
                    os.fspath(save_directory),
                    selected_adapters=others,
                    is_main_process=options.get("is_main_process", True),
                )

    @contextmanager
    def _linears_of_peft(self) -> Iterator[None]:
        """The linears that hold the other adapters, in the model for a while."""
        home = adapter_of(self._model).home
        assert home is not None
        here = {at: self._model.get_submodule(at) for at in home.layers}
        try:
            for at, layer in home.layers.items():
                self._model.set_submodule(at, layer)
            yield
        finally:
            for at, layer in here.items():
                self._model.set_submodule(at, layer)


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


class _GivenBackFirst:
    """What a method of a PeftModel that ends its adapters is while one of them is taken over."""

    def __init__(self, outer: PeftModel, name: str, give_back: Callable[[nn.Module], PeftModel]) -> None:
        self._outer, self._name, self._give_back = outer, name, give_back

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._give_back(self._outer), self._name)(*args, **kwargs)


def _equal(given: torch.Tensor | None, tensor: torch.Tensor) -> bool:
    return given is not None and torch.equal(given.to(tensor.device), tensor)
