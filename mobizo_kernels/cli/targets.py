"""Which linears of a model get an adapter, and which, as the options say it."""

from __future__ import annotations

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mobizo_kernels.cli.settings import StepSettings
from mobizo_kernels.data import PromptEncoder
from mobizo_kernels.errors import InputError


def lora_config(settings: StepSettings, model: PreTrainedModel, encoder: PromptEncoder) -> LoraConfig:
    """PEFT's configuration of the adapter `settings` ask for.

    Raises:
        InputError: as `layer_range` and `PromptEncoder.ending` do.
    """
    names = [name.strip() for name in settings.targets.split(",")]
    layers = model.config.get_text_config().num_hidden_layers
    return LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank if settings.alpha is None else settings.alpha,  # type: ignore[arg-type]
        target_modules=linear_names(model) if names == ["all-linear"] else names,
        layers_to_transform=layer_range(settings.layers, layers),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=encoder.ending(settings.tail) if settings.tail else None,
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
        InputError: none of these forms, or beyond the model.
    """
    try:
        if text.startswith("top-"):
            number = text.removeprefix("top-")
            share = number.endswith("%")
            count = max(1, round(layers * int(number[:-1]) / 100)) if share else int(number)
            first, last = layers - count, layers - 1
        else:
            first, last = map(int, text.split(":"))
    except ValueError:
        raise InputError(f"layers: expected FIRST:LAST, top-N or top-N%, got {text!r}") from None
    if not 0 <= first <= last < layers:
        raise InputError(f"layers: expected layers of the model, within 0:{layers - 1}, got {text!r}")
    return list(range(first, last + 1))
