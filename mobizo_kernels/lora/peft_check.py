"""What an adapter's files cannot say, found out before it is trained: PEFT itself is asked how it would load
them, and a base model that is not the one they name is refused.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mobizo_kernels.errors import listed
from mobizo_kernels.lora.linear import lora_scaling
from mobizo_kernels.lora.targets import Target, plain_name


def peft_key(name: str, factor: str) -> str:
    """PEFT's name of a factor ("A" or "B") of the linear at path `name`."""
    return f"base_model.model.{name}.lora_{factor}.weight"


def check_no_peft(model: nn.Module) -> None:
    """Raise ValueError if the model holds adapters of PEFT's, which files of ours would leave out."""
    owner = type(model).__name__
    for name, module in model.named_modules():
        if isinstance(module, (PeftModel, BaseTunerLayer, AuxiliaryTrainingWrapper)):
            raise ValueError(
                f"{owner} holds an adapter of PEFT ({plain_name(name) or 'its root'}): it would "
                "not be saved, so merge or unload it first, or load it with load_adapter"
            )


def check_plain_loras(model: nn.Module) -> None:
    """Raise ValueError, naming it, if an active LoRA of PEFT's computes other than B (A x) of all of x.

    DoRA and its like also take the norm of W + s B A, for each group another one that needs all weights;
    an Activated LoRA sees some tokens only, of which groups have not equally many.
    """
    for at, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if module.merged:
            merged = listed(module.merged_adapters)
            raise ValueError(
                f"adapter {merged} is merged into {plain_name(at)}; call unmerge_adapter() first"
            )
        for name in module.active_adapters:
            if variant := module.lora_variant.get(name):
                raise ValueError(
                    f"adapter {name!r} must be a plain LoRA for both factors to be tuned in one batch, got "
                    f"{type(variant).__name__} at {plain_name(at)}"
                )


def check_embeddings(model: nn.Module) -> None:
    """Raise ValueError if the embeddings were resized since the model was loaded: files of ours lack them."""
    here, there = vocabulary_of(model), _vocabulary(_config_on_disk(model))
    if here is not None and there is not None and here != there:
        source = model.name_or_path  # type: ignore[union-attr]
        raise ValueError(
            f"{type(model).__name__} has {here} token embeddings and had {there} when it was loaded from "
            f"{source!r}: an adapter does not hold them; save the resized model and load it from there first"
        )


def check_peft_loads(model: nn.Module, config: LoraConfig, targets: Sequence[Target]) -> None:
    """Raise ValueError unless PEFT, given the files of an adapter of these targets, adapts the same linears.

    It is asked on a copy of the model without values: PEFT reads the names of some linears in models with
    fused experts, for one, as others, and leaves the adapter out without an error.

    Args:
        model: wrapped or not; it is not changed.
        config: of the adapter.
        targets: the linears, their ranks and alphas; `module` is what `model` has at each name.
    """
    refusal = f"LoraConfig: PEFT {peft.__version__} would not load this adapter into {type(model).__name__}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            problems = _differences(model, config, targets)
    except Exception as error:  # whatever PEFT makes of it
        raise ValueError(f"{refusal}: {' '.join(str(error).split())}") from error
    if problems:
        ours = [name for name in problems if any(name == target.name for target in targets)]
        leave = f"; leave out {', '.join(sorted({name.rpartition('.')[2] for name in ours}))}" if ours else ""
        (name, problem), more = next(iter(problems.items())), len(ours or problems) - 1
        raise ValueError(f"{refusal}: {name} {problem}{f' (and {more} more)' if more else ''}{leave}")


def _differences(model: nn.Module, config: LoraConfig, targets: Sequence[Target]) -> dict[str, str]:
    """What PEFT would make of an adapter that is not what it is here, by the name of the linear."""
    config = copy.deepcopy(config)
    config.inference_mode = True  # as it is saved
    expected = {target.name: target for target in targets}
    loaded = PeftModel(_without_values(model, targets), config, low_cpu_mem_usage=True)
    tensors = {}
    for target in targets:
        tensors[peft_key(target.name, "A")] = _empty(target.rank, target.in_features)
        tensors[peft_key(target.name, "B")] = _empty(target.out_features, target.rank)
    result: Any = peft.set_peft_model_state_dict(loaded, tensors, low_cpu_mem_usage=True)
    found = {
        name: module
        for name, module in loaded.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }
    problems = {name: "would get no adapter" for name in expected if name not in found}
    problems |= {name: "would get one, too" for name in found if name not in expected}
    for name, target in expected.items():
        if (layer := found.get(name)) is None:
            continue
        scaling = lora_scaling(target.rank, target.alpha, config.use_rslora)
        rank, theirs = layer.r["default"], layer.scaling["default"]
        if rank != target.rank or not math.isclose(theirs, scaling, rel_tol=1e-6):
            wanted = f"rank {target.rank} and scaling {scaling:g}"
            problems[name] = f"would get rank {rank} and scaling {theirs:g} in place of {wanted}"
    for key in [*result.unexpected_keys, *(key for key in result.missing_keys if ".lora_" in key)]:
        name = key.removeprefix("base_model.model.").partition(".lora_")[0]
        problems.setdefault(name, "would not get its A and B")
    return problems


def _without_values(model: nn.Module, targets: Sequence[Target]) -> nn.Module:
    """The model's modules by the same names, on the meta device; its targets become plain linears."""
    plain: dict[int, nn.Module] = {}
    with torch.device("meta"):
        for target in targets:
            base = getattr(target.module, "base_layer", target.module)
            rows, columns = target.in_features, target.out_features
            if isinstance(base, Conv1D):
                plain[id(target.module)] = Conv1D(columns, rows)
            else:
                plain[id(target.module)] = nn.Linear(rows, columns, bias=False)
    made = _copied(model, plain)
    if isinstance(made, PreTrainedModel):
        made.config = copy.deepcopy(made.config)  # PEFT changes an entry of some
    return made


def _copied(module: nn.Module, copies: dict[int, nn.Module]) -> nn.Module:
    """A copy of a module without values; `copies` has those that were made, by the ids of the originals."""
    module = getattr(module, "_orig_mod", module)  # what torch.compile has put around it
    if id(module) in copies:
        return copies[id(module)]
    made = copies[id(module)] = copy.copy(module)
    own: dict[str, Any] = {key: copy.copy(value) for key, value in vars(module).items() if "hooks" in key}
    own["_modules"] = {
        name: None if child is None else _copied(child, copies) for name, child in module._modules.items()
    }
    own["_parameters"] = {
        name: None if parameter is None else nn.Parameter(_empty(*parameter.shape), requires_grad=False)
        for name, parameter in module._parameters.items()
    }
    vars(made).update(own)
    vars(made).pop("peft_config", None)  # PEFT would write into it, where there is a PeftModel around
    return made


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device="meta")


def vocabulary_of(model: nn.Module) -> int | None:
    """Tokens that a model of transformers has embeddings for, None for any other."""
    return _vocabulary(getattr(model, "config", None))


def _config_on_disk(model: nn.Module) -> Any:
    """The configuration of what the model was loaded from, None if there is none on this machine."""
    source = getattr(model, "name_or_path", None)
    if not isinstance(model, PreTrainedModel) or not source:
        return None
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception:  # of a file of any kind, or of none
        return None


def _vocabulary(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "vocab_size", None)
