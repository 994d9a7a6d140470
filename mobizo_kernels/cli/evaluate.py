"""Bring model, data and prompts together and score held-out rows, for `mobizo eval` and `mobizo train`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from mobizo_kernels.cli.answers import evaluate_answers
from mobizo_kernels.cli.memory import peak_rss_mb, reset_peak_rss
from mobizo_kernels.cli.quality import quality
from mobizo_kernels.cli.settings import TokenizeSettings, TrainSettings
from mobizo_kernels.cli.task_settings import EvalSettings, PromptSettings, TaskSettings, as_json
from mobizo_kernels.data import (
    CachingEncoder,
    EncodedExample,
    Example,
    PromptEncoder,
    Splits,
    load_splits,
    parse_verbalizer,
    template_columns,
)
from mobizo_kernels.errors import InputError, blame_input, listed
from mobizo_kernels.lora import load_adapter
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models import check_rows, load_model, quantize_base
from mobizo_kernels.training import score_rows

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A loaded model with the texts it is asked about and the way they are put to it."""

    model: PreTrainedModel
    pad_token: int
    encoder: PromptEncoder
    splits: Splits

    def encode(self, rows: Sequence[Example]) -> list[EncodedExample]:
        """Rows in tokens. Raises InputError if they cannot be encoded, or the model has no room for them."""
        examples = self.encoder.encode(rows)
        check_rows(self.model.config, [example.input_ids for example in examples])
        return examples


def load_task(settings: TaskSettings) -> Task:
    """Load everything a run needs, the cheap things first, so that most mistakes show at once.

    Raises:
        InputError: any of the settings names something that does not exist or does not fit.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    splits, verbalizer = load_texts(settings)
    model, tokenizer = load_model(settings.model, settings.weights)
    encoder = CachingEncoder(tokenizer, settings.template, verbalizer, settings.max_length)
    return Task(model, tokenizer.pad_token_id, encoder, splits)


def load_texts(settings: PromptSettings) -> tuple[Splits, dict[str, str]]:
    """The texts and the verbalizer, which has a word for each of their labels.

    Raises:
        InputError: one of them cannot be read, or they do not fit each other.
    """
    verbalizer = parse_verbalizer(settings.verbalizer)
    columns = template_columns(settings.template)
    splits = load_splits(settings.data, settings.text_column, settings.label_column, columns)
    if set(verbalizer) != set(splits.labels):
        expected, got = listed(splits.labels), listed(verbalizer)
        raise InputError(f"verbalizer: expected one word for each label of the data ({expected}), got {got}")
    return splits, verbalizer


def tuning_rows(splits: Splits, settings: TokenizeSettings | TrainSettings) -> Splits:
    """The rows of a run: as many of each split as `settings` ask for.

    Raises:
        InputError: a label is missing among those to train on, or among those to validate on, which decide
            which adapter is kept.
    """
    train = splits.train[: settings.train_rows]
    validation = splits.validation[: settings.validation_rows]
    for name, part, rows in (
        ("train_rows", splits.train, train),
        ("validation_rows", splits.validation, validation),
    ):
        if lack := _lack(part, rows):
            raise InputError(f"{name}: {lack}")
    return Splits(train, validation, scored_rows(splits, settings))


def scored_rows(splits: Splits, settings: PromptSettings) -> list[Example]:
    """Up to as many test rows as `settings` ask for; a warning if a label is missing among them."""
    rows = splits.test[: settings.eval_rows]
    if lack := _lack(splits.test, rows):
        _log.warning("eval_rows: %s; there is no balanced accuracy or AUC of these", lack)
    return rows


def _lack(part: Sequence[Example], rows: Sequence[Example]) -> str:
    """Which label of a split its first `rows` are without, as a sentence; empty if they have all."""
    first = {example.label: index for index, example in reversed(list(enumerate(part)))}
    missing = sorted(first.keys() - {example.label for example in rows})
    if not missing:
        return ""
    return (
        f"expected at least {max(first.values()) + 1}, to have rows of every label, got {len(rows)} without "
        f"any of {', '.join(map(repr, missing))}"
    )


def evaluate(settings: EvalSettings) -> dict[str, Any]:
    """Score a model, with an adapter or without, on the test split.

    Returns:
        `quality`, or that of free answers, and the number of rows, the peak memory and the settings.

    Raises:
        InputError: as `load_task`; or the adapter cannot be read, or is one of another model.
    """
    if settings.free_answers:
        return evaluate_answers(settings)
    task = load_task(settings)
    with blame_input("quantization"):
        quantize_base(task.model, settings.quantization)
    if settings.adapter is not None:
        with blame_input("adapter"):
            load_adapter(task.model, settings.adapter)
    with blame_input("model"):
        loss = LabelledLoss(task.model, candidate_tokens=task.encoder.candidate_tokens)
    examples = task.encode(scored_rows(task.splits, settings))
    reset_peak_rss()
    result = quality(score_rows(loss, examples, task.pad_token))
    return {
        **result,
        "rows": len(examples),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "settings": as_json(settings),
    }
