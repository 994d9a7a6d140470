"""What `mobizo generate` does: let a model, with an adapter or without, answer prompts."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mobizo_kernels.cli.task_settings import as_json
from mobizo_kernels.cli.writing_settings import ChatSettings, GenerateSettings
from mobizo_kernels.data import ChatEncoder
from mobizo_kernels.errors import InputError, blame_input, refuse_half_characters
from mobizo_kernels.generation import Sampling, TextGenerator
from mobizo_kernels.lora import adapter_of, invocation_starts, is_wrapped, load_adapter
from mobizo_kernels.models import load_model, quantize_base
from mobizo_kernels.models.limits import positions
from mobizo_kernels.training.writing import text_of

_log = logging.getLogger(__name__)


def generate(settings: GenerateSettings) -> dict[str, Any]:
    """Answer all prompts in one batch.

    Returns:
        The answers as text and their tokens, in the order of the prompts, and the settings.

    Raises:
        InputError: something the user gave does not exist or does not fit.
    """
    sampling = sampling_of(settings, *settings.prompts)
    if settings.raw and settings.system:
        raise InputError("system: expected none with --raw, which has no chat template to put it in")
    model, tokenizer = adapted(settings)
    prompts, stop = _raw(settings, model, tokenizer) if settings.raw else _chat(settings, tokenizer)
    _check(prompts, settings, model)
    with blame_input("model"):
        generator = TextGenerator(model, stop)
    (found,) = generator(prompts, sampling)
    return {
        "answers": [text_of(tokenizer, tokens) for tokens in found],
        "tokens": found,
        "settings": as_json(settings),
    }


def sampling_of(settings: ChatSettings, *texts: str) -> Sampling:
    """How tokens are chosen. Raises InputError, also for texts that are none."""
    with blame_input("settings"):
        for text in (*texts, settings.system):
            refuse_half_characters(text)
        return Sampling(
            settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p, settings.seed
        )


def adapted(settings: ChatSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with its adapter, and its tokenizer. Raises InputError where there is none."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model, tokenizer = load_model(settings.model, settings.weights)
    with blame_input("quantization"):
        quantize_base(model, settings.quantization)
    if settings.adapter is not None:
        with blame_input("adapter"):
            load_adapter(model, settings.adapter)
    return model, tokenizer


def _chat(settings: GenerateSettings, tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], set[int]]:
    """The prompts by the chat template, and the tokens that end an answer."""
    encoder = ChatEncoder(tokenizer)
    system = (("system", settings.system),) if settings.system else ()
    return [encoder.prompt((*system, ("user", text))) for text in settings.prompts], encoder.end_tokens


def _raw(
    settings: GenerateSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[list[int]], set[int]]:
    """The prompts as they are, and the tokens that end a text."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    stop = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
    return [tokenizer(text).input_ids for text in settings.prompts], stop


def _check(prompts: list[list[int]], settings: GenerateSettings, model: PreTrainedModel) -> None:
    """Raise InputError if a prompt is empty or the model has no room; say where an adapter is off."""
    most = positions(model.config)
    tokens = adapter_of(model).config.alora_invocation_tokens if is_wrapped(model) else None
    for text, prompt in zip(settings.prompts, prompts, strict=True):
        if not prompt:
            raise InputError("prompts: expected text, got an empty prompt")
        if most is not None and len(prompt) + settings.max_new_tokens > most:
            raise InputError(
                f"max_new_tokens: the model has {most} positions and a prompt {len(prompt)} tokens, got "
                f"{settings.max_new_tokens}"
            )
        if tokens is not None and int(invocation_starts(torch.tensor([prompt]), tokens)) < 0:
            _log.warning("%r lacks the adapter's invocation tokens %s: it is off there", text, tokens)
