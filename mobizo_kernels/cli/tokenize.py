"""What `mobizo tokenize` does: texts in, one file of tokens out, with the batches of training laid out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from mobizo_kernels.cli.evaluate import load_texts, tuning_rows
from mobizo_kernels.cli.files import check_distinct
from mobizo_kernels.cli.results import check_output_file
from mobizo_kernels.cli.settings import TokenizeSettings, TrainSettings
from mobizo_kernels.cli.task_settings import as_json
from mobizo_kernels.data import (
    CachingEncoder,
    ChatEncoder,
    EncodedExample,
    TokenizedDataset,
    load_conversations,
    tokenizer_fingerprint,
    training_order,
    write_dataset,
)
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.models import check_rows, load_config, load_tokenizer
from mobizo_kernels.training.readout import numbers_in_turn

_MOST_ROWS = 2**26  # of the order of training: four bytes each in the file


def tokenized(settings: TokenizeSettings | TrainSettings) -> TokenizedDataset:
    """All splits, encoded. Raises InputError if something the user gave does not exist or does not fit."""
    if settings.free_answers:
        return _conversations(settings)
    splits, verbalizer = load_texts(settings)
    config, tokenizer = load_config(settings.model), load_tokenizer(settings.model)
    encoder = CachingEncoder(tokenizer, settings.template, verbalizer, settings.max_length)
    rows = tuning_rows(splits, settings)
    train, validation, test = map(encoder.encode, (rows.train, rows.validation, rows.test))
    if config is not None:
        check_rows(config, [example.input_ids for example in (*train, *validation, *test)])
    return TokenizedDataset(
        train=train,
        validation=validation,
        test=test,
        order=_order(train, settings),
        labels=encoder.labels,
        candidate_tokens=encoder.candidate_tokens,
        tokenizer=tokenizer_fingerprint(tokenizer),
        template=settings.template,
        source=settings.data,
        in_turn=tuple(numbers_in_turn(train, settings.seed)),
    )


def _conversations(settings: TokenizeSettings | TrainSettings) -> TokenizedDataset:
    """`tokenized` where answers are free."""
    splits = load_conversations(settings.data)
    config, tokenizer = load_config(settings.model), load_tokenizer(settings.model)
    encoder = ChatEncoder(tokenizer, settings.max_length)
    train, validation, test = (
        encoder.encode(rows, settings.answers)
        for rows in (
            splits.train[: settings.train_rows],
            splits.validation[: settings.validation_rows],
            splits.test[: settings.eval_rows],
        )
    )
    if config is not None:
        check_rows(config, [example.input_ids for example in (*train, *validation, *test)])
    return TokenizedDataset(
        train=train,
        validation=validation,
        test=test,
        order=_order(train, settings),
        labels=(),
        candidate_tokens=None,
        tokenizer=tokenizer_fingerprint(tokenizer),
        source=settings.data,
    )


def _order(train: Sequence[EncodedExample], settings: TokenizeSettings | TrainSettings) -> list[int]:
    """The rows of all batches that the settings ask for."""
    batches = training_order(train, settings.batch_size, settings.seed)
    if settings.steps > (most := _MOST_ROWS // settings.batch_size):
        raise InputError(
            f"steps: a data set file holds the batches of {most} steps of {settings.batch_size} rows, "
            f"got {settings.steps}"
        )
    return list(itertools.chain.from_iterable(itertools.islice(batches, settings.steps)))


def tokenize(settings: TokenizeSettings) -> dict[str, Any]:
    """Encode all splits and write them to `settings.out`.

    A native run over the file takes the batches of `mobizo train` with the same seed and batch size, and
    uses the same validation and test rows.

    Returns:
        How many rows and tokens the file holds, and the settings.

    Raises:
        InputError: something the user gave does not exist or does not fit, or the file cannot be written, or
            is there and is not to be overwritten.
    """
    check_distinct({"out": [settings.out]}, {"model": settings.model, "data": settings.data})
    check_output_file(settings.out, overwrite=settings.overwrite)
    dataset = tokenized(settings)
    with blame_input("out"):
        write_dataset(settings.out, dataset)
    examples = [*dataset.train, *dataset.validation, *dataset.test]
    return {
        "train_rows": len(dataset.train),
        "validation_rows": len(dataset.validation),
        "test_rows": len(dataset.test),
        "longest_row": max(len(example.input_ids) for example in examples),
        "tokens": sum(len(example.input_ids) for example in examples),
        "bytes": settings.out.stat().st_size,
        "settings": as_json(settings),
    }
