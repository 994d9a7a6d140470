"""What a run begins with: the model as it is, or a readout."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from mobizo_kernels.cli.quality import quality
from mobizo_kernels.cli.results import START_DIRECTORY
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.conventions import PEFT_WEIGHTS
from mobizo_kernels.data import EncodedExample
from mobizo_kernels.errors import InputError, blame_input, first_line
from mobizo_kernels.files.safetensors import read_safetensors
from mobizo_kernels.lora import adapt_head, save_adapter
from mobizo_kernels.lora.head import head_name
from mobizo_kernels.lora.peft_check import peft_key
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training import Scored, readout, rows_in_turn

if TYPE_CHECKING:
    from mobizo_kernels.executorch import Trainer

_log = logging.getLogger(__name__)


def begin(
    settings: TrainSettings,
    loss: LabelledLoss,
    validation_loss: LabelledLoss,
    train: list[EncodedExample],
    validation: list[EncodedExample],
    pad_token: int,
    score_test: Callable[[], Scored],
) -> dict[str, Any]:
    """Give a model in torch the start that `settings` ask for, and keep it in `settings.out`, with which a
    journal replays.

    A run that goes on with a journal takes the start that it has kept.

    Returns:
        What there is to say of it in the summary: nothing where it is zero.

    Raises:
        InputError: a label has no rows to read it out of, the head cannot be adapted, or the start cannot be
            written.
    """
    if settings.start == "zero":
        return {}
    model, kept = loss.model, settings.out / START_DIRECTORY
    found: dict[str, Any] | None = None
    if _goes_on(settings):
        weights = kept / PEFT_WEIGHTS
        try:
            read_safetensors(weights)  # for its checks
        except (ValueError, OSError) as error:
            raise InputError(
                f"out: the start {str(weights)!r} cannot be read ({first_line(error)})"
            ) from error
        _recall(model, load_file(weights))
    else:
        _log.info("reading out")
        with blame_input("start"):
            made = readout(
                loss,
                rows_in_turn(train, settings.readout_rows, settings.seed),
                validation,
                validation_loss=validation_loss,
                pad_token=pad_token,
            )
        found = {**vars(made), "losses": list(made.losses.items())}
        try:
            save_adapter(model, kept)
        except OSError as error:
            raise InputError(f"out: {first_line(error)}") from error
    return _summary(found, score_test())


def begin_native(
    settings: TrainSettings, trainer: Trainer, dataset: Path, score_test: Callable[[], Scored]
) -> dict[str, Any]:
    """:func:`begin` for a program of ExecuTorch and the file of its data set."""
    if settings.start == "zero":
        return {}
    kept = settings.out / START_DIRECTORY
    found: dict[str, Any] | None = None
    if _goes_on(settings):
        try:
            trainer.load_adapter(kept)
        except (ValueError, OSError) as error:
            raise InputError(f"out: the start {str(kept)!r} cannot be read ({first_line(error)})") from error
    else:
        _log.info("reading out")
        with blame_input("start"):
            made = trainer.read_out(
                dataset, rows=settings.readout_rows, validation_rows=settings.validation_rows
            )
        found = {**vars(made), "losses": list(made.losses.items())}
        try:
            trainer.save_peft(kept)
        except OSError as error:
            raise InputError(f"out: {first_line(error)}") from error
    return _summary(found, score_test())


def _goes_on(settings: TrainSettings) -> bool:
    """Whether the run takes the start that it has kept."""
    kept, journal = settings.out / START_DIRECTORY, settings.journal
    return settings.resume and journal is not None and journal.exists() and kept.is_dir()


def _summary(found: dict[str, Any] | None, test: Scored) -> dict[str, Any]:
    return {"readout": found, **{f"{name}_start": value for name, value in quality(test).items()}}


def _recall(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Adapt the head as the start does that was kept. Of all else the journal says whether it is the same."""
    name = head_name(model)
    directions, words = (tensors.get(peft_key(name, factor)) for factor in ("A", "B"))
    if directions is None or words is None:  # no readout was better than none
        return
    tokens = words.any(dim=1).nonzero()[:, 0]
    adapt_head(model, tokens, directions, words[tokens])
