"""The description of a program from the model that it is made of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import mobizo_kernels
from mobizo_kernels.data import ChatEncoder, PromptEncoder, tokenizer_fingerprint
from mobizo_kernels.errors import InputError, first_line
from mobizo_kernels.executorch.chat_pieces import take_apart
from mobizo_kernels.executorch.description import Description, parse_description
from mobizo_kernels.executorch.description_generation import GenerationDescription
from mobizo_kernels.executorch.description_model import (
    AdapterDescription,
    AdapterParameter,
    HeadDescription,
    ModelDescription,
)
from mobizo_kernels.executorch.description_texts import PromptDescription, TextsDescription
from mobizo_kernels.lora import (
    MPLoRALinear,
    adapter_config,
    adapter_of,
    held_head,
    model_fingerprint,
    tuned_layers,
)
from mobizo_kernels.lora.head import config_with_head, config_without_head, head_name, head_pattern
from mobizo_kernels.loss.label_head import logit_scale, soft_cap
from mobizo_kernels.optim import UpdateRule

_log = logging.getLogger(__name__)


def describe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    rule: UpdateRule,
    *,
    queries: int,
    batch_size: int,
    groups: int,
    estimator: str,
    distribution: str,
    quantization: str,
    min_length: int,
    max_length: int,
    targets_per_row: int,
    tail_length: int | None,
    candidate_tokens: Sequence[int] | None,
    lowering: str,
    prompt: PromptEncoder | None,
    context: int | None,
) -> Description:
    """The description of a program that is made of a wrapped model, as a reader of the program finds it.

    Args:
        model: wrapped, in float32, before anything in it is replaced.
        tokenizer: of the data that the program takes; None for any.
        rule: of the update.
        min_length: fewest tokens of a row's input, `max_length` if it is always that.
        queries: q; this and all others as :func:`export_training_program` has them.

    Raises:
        ValueError: naming the field, if the native trainer would refuse the program for it.
    """
    invocation = adapter_of(model).config.alora_invocation_tokens
    made = Description(
        versions={
            "mobizo_kernels": mobizo_kernels.__version__,
            **{name: version(name) for name in ("executorch", "torch", "transformers")},
        },
        model=ModelDescription(
            name=str(model.name_or_path),
            architecture=type(model).__name__,
            fingerprint=model_fingerprint(model),
        ),
        quantization=quantization,
        queries=queries,
        batch_size=batch_size,
        groups=groups,
        estimator=estimator,
        distribution=distribution,
        optimizer=rule,
        min_length=min_length,
        max_length=max_length,
        dynamic_length=min_length < max_length,
        targets_per_row=targets_per_row,
        invocation_tokens=None if invocation is None else tuple(invocation),
        tail_length=tail_length,
        candidate_tokens=None if candidate_tokens is None else tuple(candidate_tokens),
        vocabulary=model.config.get_text_config().vocab_size,
        pad_token=_pad_token(model, tokenizer),
        # As many tokens go through all layers at once as in a step, for the memory is planned for the most.
        evaluation_rows=batch_size * (groups if tail_length is None else 1),
        tokenizer=None if tokenizer is None else tokenizer_fingerprint(tokenizer),
        adapter=AdapterDescription(
            config=_config_of_the_tuned(model),
            parameters=tuple(
                AdapterParameter(
                    name=f"{name}.weight",
                    stream=layer.stream,
                    lora_a=(layer.lora_a.shape[0], layer.lora_a.shape[1]),
                    lora_b=(layer.lora_b.shape[0], layer.lora_b.shape[1]),
                    scaling=layer.scaling,
                )
                for name, layer in tuned_layers(model).items()
            ),
        ),
        lowering=lowering,
        head=None if candidate_tokens is None else describe_head(model),
        texts=None if tokenizer is None else describe_texts(tokenizer, prompt),
        generation=None if context is None else _describe_generation(model, tokenizer, context, max_length),
    )
    return parse_description(made.text)


def describe_head(model: PreTrainedModel) -> HeadDescription | None:
    """The LM head of a wrapped model, if a readout may give it an adapter, or has; None of one that is tuned,
    or that PEFT could not adapt.
    """
    held = held_head(model)
    name, rank = head_name(model), 0 if held is None else held.rank
    if held is None and isinstance(model.get_output_embeddings(), MPLoRALinear):
        return None
    try:
        cap = soft_cap(model)
        config = adapter_of(model).config if held is not None else config_with_head(model, 1)[0]
    except ValueError as error:
        _log.info("no readout can be made with this program: %s", error)
        return None
    layer: nn.Module = model.get_output_embeddings() if held is None else held.base_layer
    rows, width = layer.get_parameter("weight").shape
    targets = config.target_modules
    return HeadDescription(
        name=f"{name}.weight",
        shape=(rows, width),
        scale=logit_scale(model),
        soft_cap=cap,
        rank=rank,
        pattern=head_pattern(name),
        target_modules=targets if isinstance(targets, str) else tuple(sorted(targets or ())),
    )


def describe_texts(tokenizer: PreTrainedTokenizerBase, prompt: PromptEncoder | None) -> TextsDescription:
    """How texts become rows: by the prompt and by the tokenizer's chat template, if it can be taken apart."""
    chat = no_chat = None
    try:
        chat = take_apart(tokenizer)
    except InputError as error:
        no_chat = first_line(error)
        _log.info("no conversations can be given to this program as text: %s", no_chat)
    if prompt is None:
        return TextsDescription(prompt=None, chat=chat, no_chat=no_chat)
    described = PromptDescription(template=prompt.template, labels=prompt.labels, words=prompt.words)
    return TextsDescription(prompt=described, chat=chat, no_chat=no_chat)


def _describe_generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, context: int, max_length: int
) -> GenerationDescription:
    """With the tokens that end a text, and those that end a turn."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    stop = {*(ends if isinstance(ends, list) else [ends])}
    if tokenizer is not None:
        stop.add(tokenizer.eos_token_id)
        if getattr(tokenizer, "chat_template", None):
            stop |= ChatEncoder(tokenizer).end_tokens
    vocabulary = model.config.get_text_config().vocab_size
    return GenerationDescription(
        context=context,
        chunk=min(context, max_length),
        stop_tokens=tuple(sorted(token for token in stop if token is not None and 0 <= token < vocabulary)),
    )


def _config_of_the_tuned(model: PreTrainedModel) -> dict[str, Any]:
    """PEFT's configuration of the adapter but for that of a head that is held."""
    config = adapter_of(model).config
    if held_head(model) is not None:
        config = config_without_head(config, head_name(model))
    return adapter_config(model, config)


def _pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    config = model.config.get_text_config()
    found = [getattr(source, "pad_token_id", None) for source in (tokenizer, model.generation_config, config)]
    return next((token for token in found if token is not None), 0)
