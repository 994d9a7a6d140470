"""What a run begins with: the model as it is, or a readout."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from mobizo_kernels.cli.quality import quality
from mobizo_kernels.cli.results import adapter_files
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.conventions import PEFT_WEIGHTS
from mobizo_kernels.data import EncodedExample
from mobizo_kernels.errors import InputError, blame_input, first_line
from mobizo_kernels.files.safetensors import read_safetensors
from mobizo_kernels.lora import adapt_head, save_adapter
from mobizo_kernels.lora.head import head_name
from mobizo_kernels.lora.peft_check import peft_key
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training import Readout, Scored, readout, rows_in_turn

if TYPE_CHECKING:
    from mobizo_kernels.executorch import Readout as NativeReadout
    from mobizo_kernels.executorch import Trainer

_log = logging.getLogger(__name__)


def start_directory(journal: Path) -> Path:
    """Where the start of a run is kept that has this journal: a PEFT directory."""
    return journal.with_name(f"{journal.name}.start")


def journal_files(journal: Path | None) -> list[Path]:
    """What a run with this journal, if any, may write for it."""
    return [] if journal is None else [journal, *adapter_files(start_directory(journal))]


def begin(
    settings: TrainSettings,
    loss: LabelledLoss,
    validation_loss: LabelledLoss,
    train: list[EncodedExample],
    validation: list[EncodedExample],
    pad_token: int,
    score_test: Callable[[], Scored],
) -> dict[str, Any]:
    """Give a model in torch the start that `settings` ask for, and keep it beside the journal, which replays
    from there.

    A run that goes on with a journal takes the start that is kept with it.

    Returns:
        What there is to say of it in the summary: nothing where it is zero.

    Raises:
        InputError: the start cannot be read or written; or a readout is asked for and cannot be made, as
            where a label has no rows.
    """
    model = loss.model

    def recall(kept: Path) -> None:
        weights = kept / PEFT_WEIGHTS
        try:
            read_safetensors(weights)  # for its checks
            _recall(model, load_file(weights))
        except (ValueError, OSError) as error:
            raise InputError(
                f"journal: the start {str(weights)!r} cannot be read ({first_line(error)})"
            ) from error

    def read_out() -> Readout:
        return readout(
            loss,
            rows_in_turn(train, settings.readout_rows, settings.seed),
            validation,
            validation_loss=validation_loss,
            pad_token=pad_token,
        )

    return _begin(settings, recall, read_out, partial(save_adapter, model), score_test)


def begin_native(
    settings: TrainSettings, trainer: Trainer, dataset: Path, score_test: Callable[[], Scored]
) -> dict[str, Any]:
    """:func:`begin` for a program of ExecuTorch and the file of its data set."""

    def recall(kept: Path) -> None:
        try:
            trainer.load_adapter(kept)
        except (ValueError, OSError) as error:
            raise InputError(
                f"journal: the start {str(kept)!r} cannot be read ({first_line(error)})"
            ) from error

    def read_out() -> NativeReadout:
        return trainer.read_out(dataset, rows=settings.readout_rows, validation_rows=settings.validation_rows)

    return _begin(settings, recall, read_out, trainer.save_peft, score_test)


def _begin(
    settings: TrainSettings,
    recall: Callable[[Path], None],
    read_out: Callable[[], Readout | NativeReadout],
    save: Callable[[Path], object],
    score_test: Callable[[], Scored],
) -> dict[str, Any]:
    """`begin`, by what an engine has for each part of it."""
    journal = settings.journal
    kept = None if journal is None else start_directory(journal)
    goes_on = settings.resume and journal is not None and journal.exists()
    if kept is not None:
        if goes_on and settings.start != "zero" and any(path.exists() for path in adapter_files(kept)):
            recall(kept)
            return _summary(None, score_test())
        if goes_on and settings.start != "readout":
            return {}
        if not goes_on:
            with blame_input("journal"):
                for path in adapter_files(kept):  # of an earlier run, which this one would go on from
                    path.unlink(missing_ok=True)
    if settings.start == "zero":
        return {}
    _log.info("reading out")
    try:
        with blame_input("start"):
            made = read_out()
    except InputError as error:
        if settings.start == "readout":
            raise
        _log.info("%s; the run begins without a readout", error)
        return {}
    if kept is not None and not goes_on:  # it is that of a journal only if the run can go on with that
        with blame_input(f"journal: the start {str(kept)!r} cannot be written"):
            save(kept)
    return _summary({**vars(made), "losses": list(made.losses.items())}, score_test())


def _summary(found: dict[str, Any] | None, test: Scored) -> dict[str, Any]:
    return {"readout": found, **{f"{name}_start": value for name, value in quality(test).items()}}


def _recall(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Adapt the head as the start does that was kept. Of all else the journal says whether it is the same.

    Raises:
        ValueError: if the start is of a head of another shape, or this one has an adapter already.
    """
    name = head_name(model)
    directions, words = (tensors.get(peft_key(name, factor)) for factor in ("A", "B"))
    if directions is None or words is None:  # no readout was better than none
        return
    head, rank = model.get_output_embeddings(), directions.shape[:1]
    for factor, tensor, expected in (
        ("A", directions, [*rank, head.in_features]),
        ("B", words, [head.out_features, *rank]),
    ):
        if list(tensor.shape) != expected:
            raise ValueError(f"lora_{factor} of {name} must have shape {expected}, got {list(tensor.shape)}")
    tokens = words.any(dim=1).nonzero()[:, 0]
    adapt_head(model, tokens, directions, words[tokens])
