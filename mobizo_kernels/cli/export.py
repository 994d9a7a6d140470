"""What `mobizo export` does: write the program that trains a model inside ExecuTorch."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mobizo_kernels.cli.files import check_distinct
from mobizo_kernels.cli.memory import peak_rss_mb
from mobizo_kernels.cli.results import check_output_file
from mobizo_kernels.cli.settings import ExportSettings, update_rule
from mobizo_kernels.cli.targets import lora_config
from mobizo_kernels.cli.task_settings import as_json
from mobizo_kernels.data import ChatEncoder, PromptEncoder, parse_verbalizer, tokenizer_definition
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.files.file import written_whole
from mobizo_kernels.lora import MPLoRALinear, hold_head, load_adapter, wrap
from mobizo_kernels.lora.head import is_readout
from mobizo_kernels.models import check_max_length, load_model, load_tokenizer


def export(settings: ExportSettings) -> dict[str, Any]:
    """Write the training program of a model, with an adapter as `settings` ask for, to `settings.out`.

    Returns:
        The size of the file, what it took to make it, and the settings.

    Raises:
        InputError: something the user gave does not exist or does not fit; nothing has been written then.
    """
    executorch = native()
    check_output_file(settings.out, overwrite=settings.overwrite)
    outputs = {"out": [settings.out]}
    if settings.tokenizer is not None:
        check_output_file(settings.tokenizer, "tokenizer", overwrite=settings.overwrite)
        outputs["tokenizer"] = [settings.tokenizer]
    check_distinct(outputs, {"model": settings.model, "adapter": settings.adapter})
    started = perf_counter()
    tokenizer = load_tokenizer(settings.model)
    if settings.tokenizer is not None:
        _require_definition(tokenizer)
    encoder = encoder_of(settings, tokenizer)
    labelled = isinstance(encoder, PromptEncoder)
    model = adapted_model(settings, encoder)
    check_max_length(model.config, settings.max_length)
    with blame_input("export"), _progress(), directory_for(settings.out):
        logging.getLogger("mobizo_kernels").info(
            "exporting to %s; adapters in all linears of a model of 100 million parameters take 3 minutes",
            settings.out,
        )
        description = executorch.export_training_program(
            model,
            settings.out,
            queries=settings.queries,
            batch_size=settings.batch_size,
            max_length=settings.max_length,
            estimator=settings.estimator,
            distribution=settings.distribution,
            optimizer=update_rule(settings),
            quantization=settings.quantization,
            lowering=settings.lowering,
            dynamic_length=not settings.static_length,
            targets_per_row=1 if labelled else settings.answer_tokens,
            candidate_tokens=encoder.candidate_tokens if isinstance(encoder, PromptEncoder) else None,
            context=settings.context,
            tokenizer=tokenizer,
            prompt=encoder if isinstance(encoder, PromptEncoder) else None,
        )
    if settings.tokenizer is not None:
        with blame_input("tokenizer"), written_whole(settings.tokenizer) as scratch:
            scratch.write_text(tokenizer_definition(tokenizer), encoding="utf-8")
    return {
        "program": str(settings.out),
        "bytes": settings.out.stat().st_size,
        "groups": description.groups,
        "adapted_linears": len(description.adapter.parameters),
        "seconds": round(perf_counter() - started, 1),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "settings": as_json(settings),
    }


def encoder_of(settings: ExportSettings, tokenizer: PreTrainedTokenizerBase) -> PromptEncoder | ChatEncoder:
    """What makes rows of the texts that `settings` are for. Raises InputError if they do not fit."""
    if settings.free_answers:
        return ChatEncoder(tokenizer, settings.max_length)
    verbalizer = parse_verbalizer(settings.verbalizer)
    return PromptEncoder(tokenizer, settings.template, verbalizer, settings.max_length)


def _require_definition(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer: that of the model, {type(tokenizer).__name__}, is no tokenizer.json")


def native() -> ModuleType:
    """mobizo_kernels.executorch. Raises InputError if there is no ExecuTorch that fits."""
    try:
        import mobizo_kernels.executorch
    except ImportError as error:
        raise InputError(str(error)) from error
    return mobizo_kernels.executorch


def adapted_model(settings: ExportSettings, encoder: PromptEncoder | ChatEncoder) -> PreTrainedModel:
    """The model in float32, with the adapter that `settings` ask for, a readout in it held. Raises InputError
    as `export`.
    """
    model, _ = load_model(settings.model, "float32")
    if settings.adapter is not None:
        with blame_input("adapter"):
            load_adapter(model, settings.adapter)
        head, words = model.get_output_embeddings(), getattr(encoder, "candidate_tokens", None)
        if isinstance(head, MPLoRALinear) and words is not None and is_readout(head, words):
            hold_head(model)
        return model
    config = lora_config(settings, model, encoder)
    with blame_input("settings"):
        return wrap(model, config, seed=settings.seed)


@contextmanager
def directory_for(file: Path) -> Iterator[None]:
    """Make the directories that `file` needs, and take them away again if nothing came of it."""
    missing = [directory for directory in file.absolute().parents if not directory.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for directory in missing:
            with suppress(OSError):  # somebody else found a use for it
                directory.rmdir()
        raise


@contextmanager
def _progress() -> Iterator[None]:
    """The package's messages on stderr, and no warnings of the libraries that an export calls."""
    logger = logging.getLogger("mobizo_kernels")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # to the handler that a library may have given to all of the process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(handler)
