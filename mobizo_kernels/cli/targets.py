"""Which linears of a model get an adapter, and which, as the options say it."""

from __future__ import annotations

import logging

from peft import LoraConfig
from transformers import PreTrainedModel

from mobizo_kernels.cli.settings import StepSettings
from mobizo_kernels.data import ChatEncoder, PromptEncoder
from mobizo_kernels.lora.targets import layer_range, linear_names

_log = logging.getLogger(__name__)


def lora_config(
    settings: StepSettings, model: PreTrainedModel, encoder: PromptEncoder | ChatEncoder
) -> LoraConfig:
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
        alora_invocation_tokens=_invocation(settings, encoder),
    )


def _invocation(settings: StepSettings, encoder: PromptEncoder | ChatEncoder) -> list[int] | None:
    """The tokens from which the adapters act; None for everywhere."""
    if not settings.tail:
        return None
    if isinstance(encoder, PromptEncoder):
        return encoder.ending(settings.tail)
    if not encoder.invocation:
        _log.warning("nothing special begins an answer in the chat template: the adapter acts everywhere")
    return encoder.invocation or None
