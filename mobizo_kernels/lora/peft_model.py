"""The LoRA of a live PeftModel: taken over to be tuned by forward passes, and given back.

The linears of PEFT leave the model for the time between, with all that PEFT knows of them, and come back as
the same modules with other values.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from mobizo_kernels.errors import listed
from mobizo_kernels.lora.adapter import PeftHome, adapter_layers, adapter_of, bare
from mobizo_kernels.lora.installing import install, remove
from mobizo_kernels.lora.linear import MPLoRALinear, device_of
from mobizo_kernels.lora.peft_check import check_embeddings, check_no_peft, check_peft_loads
from mobizo_kernels.lora.peft_save import check_saves
from mobizo_kernels.lora.saving import install_peft_methods, remove_peft_methods
from mobizo_kernels.lora.targets import Target, check_options, find_targets, plain_name

HARMLESS_INITS = (True, False, "gaussian", "orthogonal")
"""Ways of initialising LoRA that leave the base weights alone; others only make sense on a changed base."""
_OPTIONS_OF_THE_MODEL = (
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
)


@torch.no_grad()
def take_over(model: PeftModel) -> None:
    """Put the active LoRA of a PeftModel in the places of PEFT's, with its values, and freeze the rest. Its
    other adapters, which do not act, leave the model with PEFT's linears.

    Args:
        model: not wrapped, with one adapter active.

    Raises:
        ValueError: as :func:`mobizo_kernels.wrap`; the model is left as it was.
    """
    name = _active_adapter(model)
    config = _config_to_tune(model.peft_config[name], name)
    _check_others(model, name)
    base = model.get_base_model()
    # Any, for PEFT's layers are modules by their second base class only.
    layers: dict[str, Any] = {
        plain_name(at): module for at, module in base.named_modules() if isinstance(module, LoraLayer)
    }
    for at, layer in layers.items():
        if layer.merged:
            merged = listed(layer.merged_adapters)
            raise ValueError(f"adapter {merged} is merged into {at}; call unmerge_adapter() first")
        if layer.disable_adapters:
            raise ValueError(f"adapter {name!r} is off; call enable_adapter_layers() first")
    for at, layer in layers.items():
        base.set_submodule(at, layer.base_layer)
    try:
        check_no_peft(base)
        check_embeddings(base)
        targets = find_targets(base, config)
        for target in targets:
            _check_same(target, layers.get(target.name), name, config)
        adapted = {at for at, layer in layers.items() if name in layer.lora_A}
        if missed := adapted - {target.name for target in targets}:
            raise ValueError(f"LoraConfig of adapter {name!r} does not describe that of {min(missed)}")
        check_peft_loads(base, config, targets)
    except BaseException:
        for at, layer in layers.items():
            base.set_submodule(at, layer)
        raise
    ours = install(base, config, targets, PeftHome(model, name, layers))
    for at, layer in ours.items():
        layer.lora_a.copy_(layers[at].lora_A[name].weight)
        layer.lora_b.copy_(layers[at].lora_B[name].weight)
    install_peft_methods(model, base, name, to_peft)


@torch.no_grad()
def to_peft(model: nn.Module) -> PeftModel:
    """Give the adapter of a wrapped model to PEFT, in place: what PEFT offers, `merge_and_unload` and
    first-order training included, works on it.

    Args:
        model: wrapped, or the PeftModel around such a model. It is not wrapped afterwards.

    Returns:
        The PeftModel whose adapter was taken over by :func:`wrap` or :class:`ZerothOrder`, with that adapter
        under its name and active, and the others as they were; or a new one around the model, whose adapter
        is called "default". It computes what the wrapped model computed; A and B are float32.

    Raises:
        ValueError: before the model is touched, if it is not wrapped, or if it is none that PEFT would make
            of the files of its adapter.
    """
    base, adapter = bare(model), adapter_of(model)
    ours, home = adapter_layers(base), adapter.home
    check_saves(base)
    if home is None:
        config = copy.deepcopy(adapter.config)
        config.inference_mode = False
        remove(base, {at: layer.base_layer for at, layer in ours.items()})
        made = get_peft_model(base, config)
        made_layers = {plain_name(at): module for at, module in base.named_modules()}
        for at, layer in ours.items():
            _give(layer, made_layers[at], "default")
        return made.train(base.training)
    if added := {at for at in ours if at not in home.layers or home.name not in home.layers[at].lora_A}:
        raise ValueError(
            f"{type(home.model).__name__} had no adapter of {min(added)}; call save_adapter, and load its "
            "files with PeftModel.from_pretrained"
        )
    remove(base, home.layers)
    remove_peft_methods(home.model)
    theirs: Any = home.model.peft_config[home.name]
    for option in ("lora_alpha", "alpha_pattern", "use_rslora"):  # load_adapter may have brought others
        setattr(theirs, option, copy.copy(getattr(adapter.config, option)))
    for at, layer in ours.items():
        _give(layer, home.layers[at], home.name)
    for layer in home.layers.values():  # other adapters were not in the model when it was moved
        layer.to(device_of(layer.base_layer))
    return home.model


def _active_adapter(model: PeftModel) -> str:
    active = list(model.active_adapters)
    if len(active) != 1:
        raise ValueError(
            f"one adapter of {type(model).__name__} must be active, got {listed(active) or 'none'}; "
            "call set_adapter with the name of the one to tune"
        )
    return active[0]


def _check_others(model: PeftModel, tuned: str) -> None:
    """Raise ValueError, naming it, if an adapter that does not act leaves a trace in the model all the same:
    weights of its own in the base, which the files of the tuned one would lack.
    """
    config: Any  # of any kind of adapter
    for name, config in model.peft_config.items():
        if name == tuned:
            continue
        try:
            check_init(config)
            for option in _OPTIONS_OF_THE_MODEL:
                if value := getattr(config, option, None):
                    raise ValueError(f"LoraConfig.{option}={value!r} changes modules without a LoRA")
        except ValueError as error:
            raise ValueError(
                f"adapter {name!r}, which is not to be tuned, cannot stay in {type(model).__name__}: "
                f"{error}; call delete_adapter, or load the one to tune into a base model of its own"
            ) from error


def _config_to_tune(config: Any, name: str) -> LoraConfig:
    """A copy of an adapter's configuration, as that of an adapter of ours."""
    if not isinstance(config, LoraConfig):
        raise ValueError(f"adapter {name!r} must be a LoRA, got {config.peft_type}")
    config = copy.deepcopy(config)
    check_init(config)
    config.init_lora_weights = True
    config.lora_dropout = 0.0
    check_options(config)
    return config


def check_init(config: LoraConfig) -> None:
    """Raise ValueError if the base weights were changed when the adapter was made."""
    if config.init_lora_weights not in HARMLESS_INITS:
        raise ValueError(
            f"LoraConfig.init_lora_weights={config.init_lora_weights!r} changes the base weights, so the "
            "adapter alone does not describe the model"
        )


def _check_same(target: Target, layer: LoraLayer | None, name: str, config: LoraConfig) -> None:
    """Raise ValueError unless a linear has in PEFT the adapter that its configuration tells of."""
    if layer is None or name not in layer.lora_A:
        raise ValueError(f"adapter {name!r} has nothing at {target.name}, which its LoraConfig selects")
    rank, alpha = layer.r[name], layer.scaling[name] * target.rank ** (0.5 if config.use_rslora else 1)
    if rank != target.rank or abs(alpha - target.alpha) > 1e-6 * abs(target.alpha):
        raise ValueError(
            f"adapter {name!r} has rank {rank} and alpha {alpha:g} at {target.name}, where its LoraConfig "
            f"says {target.rank} and {target.alpha:g}"
        )


def _give(layer: MPLoRALinear, theirs: Any, name: str) -> None:
    """Values and scaling of an adapted linear to PEFT's."""
    theirs.lora_A[name].weight.data = layer.lora_a.data
    theirs.lora_B[name].weight.data = layer.lora_b.data
    theirs.scaling[name] = layer.scaling
