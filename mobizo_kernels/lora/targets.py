"""Which linears a `peft.LoraConfig` adapts, and with which rank and alpha: PEFT's own matching, read only."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, TaskType
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mobizo_kernels.errors import InputError
from mobizo_kernels.lora.linear import device_of
from mobizo_kernels.ops.checks import MAX_RANK

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

# Tasks whose heads PEFT saves with the adapter.
_WITH_HEADS = {TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.QUESTION_ANS}


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
        if value != default and not (field.name == "modules_to_save" and value == []):
            raise ValueError(f"LoraConfig.{field.name}={value!r} is not supported, only {default!r} is")
    _check_types(config)
    if config.task_type in _WITH_HEADS:
        raise ValueError(
            f"LoraConfig.task_type={str(config.task_type)!r} is not supported: PEFT would train and save the "
            "head of the task, too"
        )
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


def linear_names(model: PreTrainedModel) -> list[str]:
    """The names of a decoder's linears, the LM head left out: PEFT takes "all-linear" for all layers only."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head
        }
    )


def layer_range(text: str, layers: int) -> list[int]:
    """The layers meant by "FIRST:LAST" (from 0, both included), "top-N" or "top-N%" (one at least), of a
    model that has `layers` of them.

    Raises:
        InputError: none of these forms, or no layers of the model.
    """
    if between := re.fullmatch(r"(\d+):(\d+)", text):
        first, last = map(int, between.groups())
        fits, expected = first <= last < layers, f"FIRST <= LAST within 0:{layers - 1}"
    elif top := re.fullmatch(r"top-(\d+)(%?)", text):
        number, most = int(top[1]), 100 if top[2] else layers
        fits, expected = 1 <= number <= most, f"top-1{top[2]} to top-{most}{top[2]}"
        count = max(1, round(layers * number / 100)) if top[2] else number
        first, last = layers - count, layers - 1
    else:
        raise InputError(f"layers: expected FIRST:LAST, top-N or top-N%, got {text!r}")
    if not fits:
        raise InputError(f"layers: expected {expected} for this model, got {text!r}")
    return list(range(first, last + 1))


def _check_types(config: LoraConfig) -> None:
    """Raise ValueError, naming the option, if one is of another type: a file may hold anything."""
    for options, fits, wanted in _TYPES:
        for option in options:
            value = getattr(config, option)
            if not fits(value):
                raise ValueError(f"LoraConfig.{option} must be {wanted}, got {value!r}")


def _is_text(value: object) -> bool:
    several = isinstance(value, (list, tuple, set)) and all(isinstance(entry, str) for entry in value)
    return value is None or isinstance(value, str) or several


def _is_layers(value: object) -> bool:
    return value is None or all(type(n) is int for n in (value if isinstance(value, list) else [value]))


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_pattern(value: object) -> bool:
    if not isinstance(value, dict):
        return value is None
    return all(isinstance(key, str) and _is_number(number) for key, number in value.items())


_TYPES: tuple[tuple[tuple[str, ...], Callable[[object], bool], str], ...] = (
    (("target_modules", "exclude_modules", "layers_pattern"), _is_text, "a text or a list of texts"),
    (("layers_to_transform",), _is_layers, "an integer or a list of integers"),
    (("rank_pattern", "alpha_pattern"), _is_pattern, "a mapping from texts to finite numbers"),
    (("r",), lambda value: type(value) is int, "an integer"),
    (("lora_alpha",), _is_number, "a finite number"),
    (("use_rslora",), lambda value: type(value) is bool, "true or false"),
)


def _target(name: str, module: nn.Module, config: LoraConfig) -> Target:
    features = _features(module)
    if features is None or not _computes_linear(module, *features):
        raise ValueError(f"LoraConfig.target_modules matches {name} ({type(module).__name__}), not a linear")
    if re.search(r"(^|\.)experts\.\d+\.", name):
        raise ValueError(
            f"LoraConfig.target_modules matches {name}, an expert that sees only the tokens routed to it, "
            "so groups of rows cannot be told apart there"
        )
    if device_of(module).type == "meta":
        raise ValueError(f"the weight of {name} is on the meta device, which holds no values: load it first")
    weight = getattr(module, "weight", None)
    if weight is None and hasattr(module, "quantization_status"):
        raise ValueError(
            f"the weight of {name} is still compressed, and compressed-tensors finds no adapter in its place "
            "in the first forward: load the model with CompressedTensorsConfig(dequantize=True), or call it "
            "once first"
        )
    if isinstance(weight, torch.Tensor) and weight.dtype == torch.float64:
        raise ValueError(f"the weight of {name} is float64; load it in float32, bfloat16 or float16")
    rank, alpha = rank_and_alpha(config, name)
    if not (isinstance(rank, int) and 1 <= rank <= MAX_RANK):
        raise ValueError(f"LoraConfig: the rank of {name} must be from 1 to {MAX_RANK}, got {rank}")
    if not abs(alpha) <= torch.finfo(torch.float32).max:
        raise ValueError(f"LoraConfig: the alpha of {name} must be finite in float32, got {alpha}")
    return Target(name, module, *features, rank, alpha)


def _features(module: nn.Module) -> tuple[int, int] | None:
    """in_features and out_features of a linear, quantised or not; None for any other module."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    rows, columns = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def _computes_linear(module: nn.Module, in_features: int, out_features: int) -> bool:
    """Whether a linear of an architecture's own, a router for one, gives its outputs and no more."""
    own = type(module).__module__.startswith("transformers.models.")
    if not (own and isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward):
        return True
    tensors = {name: tensor.detach().to("meta") for name, tensor in module.state_dict().items()}
    x = torch.empty(2, 3, in_features, dtype=module.weight.dtype, device="meta")
    try:
        out = torch.func.functional_call(module, tensors, (x,))
    except Exception:  # it takes something else
        return False
    return isinstance(out, torch.Tensor) and out.shape == (2, 3, out_features)


def _linears(model: nn.Module) -> str:
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if _features(module)}
    return f"the linears of {type(model).__name__} are {', '.join(sorted(names)) or 'none'}"
