"""Which linears a `peft.LoraConfig` adapts, and with which rank and alpha: PEFT's own matching, read only."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from peft import LoraConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from mobizo_kernels.lora.linear import device_of

# The options of LoraConfig that are honoured, and those that say nothing about the computation. Any other
# option, also one that a later PEFT adds, has to be at its default. fan_in_fan_out follows from the layer.
_HONOURED = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "init_lora_weights", "fan_in_fan_out", "alora_invocation_tokens",
}  # fmt: skip
_NEUTRAL = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "runtime_config",
}  # fmt: skip

_MAX_RANK = 256  # of the kernels


@dataclass(frozen=True)
class Target:
    """A linear to adapt: its path in the model, its sizes, and the rank and alpha of its adapter."""

    name: str
    module: nn.Module
    in_features: int
    out_features: int
    rank: int
    alpha: float


def find_targets(model: nn.Module, config: LoraConfig, *, strict: bool = False) -> list[Target]:
    """The linears that `config` asks for, in the order of the model.

    Args:
        model: not wrapped.
        config: its `target_modules` is written out: None and "all-linear" become lists.
        strict: every entry of `target_modules` has to match something; else one match is enough, as in PEFT.

    Raises:
        ValueError: if nothing matches, or something that is no linear, does not see all tokens or has no
            values.
    """
    if config.target_modules is None:
        model_type = str(getattr(getattr(model, "config", None), "model_type", None))
        default = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
        if default is None:
            raise ValueError(f"LoraConfig.target_modules must be given; {_linears(model)}")
        config.target_modules = list(default)
    _maybe_include_all_linear_layers(config, model)

    modules = {plain_name(name): module for name, module in model.named_modules() if name}
    if strict and not isinstance(config.target_modules, str):
        wanted = config.target_modules or ()
        unknown = [w for w in wanted if not any(f".{name}".endswith(f".{w}") for name in modules)]
        if unknown:
            names = " or ".join(sorted(unknown))
            raise ValueError(f"LoraConfig.target_modules: nothing is called {names}; {_linears(model)}")
    targets = [
        _target(name, module, config)
        for name, module in modules.items()
        if check_target_module_exists(config, name)
    ]
    if not targets:
        raise ValueError(
            f"LoraConfig selects nothing by target_modules={config.target_modules!r}, "
            f"exclude_modules={config.exclude_modules!r} and "
            f"layers_to_transform={config.layers_to_transform!r}; {_linears(model)}"
        )
    return targets


def plain_name(name: str) -> str:
    """The path of a module or parameter as it was before torch.compile put its own level in between."""
    return name.replace("_orig_mod.", "")


def check_options(config: LoraConfig) -> None:
    """Raise ValueError, naming the option, unless every option of `config` can be honoured."""
    for field in dataclasses.fields(config):
        if field.name in _HONOURED | _NEUTRAL:
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(config, field.name)
        if value != default:
            raise ValueError(f"LoraConfig.{field.name}={value!r} is not supported, only {default!r} is")
    tokens = config.alora_invocation_tokens
    if tokens is not None and not (tokens and all(isinstance(token, int) for token in tokens)):
        raise ValueError(
            f"LoraConfig.alora_invocation_tokens must be token ids, at least one, got {tokens!r}"
        )


def rank_and_alpha(config: LoraConfig, name: str) -> tuple[int, float]:
    """Rank and alpha of the linear at path `name`, after `rank_pattern` and `alpha_pattern`."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    return (
        ranks.get(get_pattern_key(list(ranks), name), config.r),
        alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha),
    )


def _target(name: str, module: nn.Module, config: LoraConfig) -> Target:
    features = _features(module)
    if features is None:
        raise ValueError(f"LoraConfig.target_modules matches {name} ({type(module).__name__}), not a linear")
    if re.search(r"(^|\.)experts\.\d+\.", name):
        raise ValueError(
            f"LoraConfig.target_modules matches {name}, an expert that sees only the tokens routed to it, "
            "so groups of rows cannot be told apart there"
        )
    if device_of(module).type == "meta":
        raise ValueError(f"the weight of {name} is on the meta device, which holds no values: load it first")
    rank, alpha = rank_and_alpha(config, name)
    if not 1 <= rank <= _MAX_RANK:
        raise ValueError(f"LoraConfig: the rank of {name} must be from 1 to {_MAX_RANK}, got {rank}")
    return Target(name, module, *features, rank, alpha)


def _features(module: nn.Module) -> tuple[int, int] | None:
    """in_features and out_features of a linear, quantised or not; None for any other module."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    rows, columns = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def _linears(model: nn.Module) -> str:
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if _features(module)}
    return f"the linears of {type(model).__name__} are {', '.join(sorted(names)) or 'none'}"
