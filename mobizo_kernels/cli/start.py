"""What a run begins with: the model as it is, or a readout."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
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
from mobizo_kernels.lora import adapt_head, adapter_layers, peft_from_device, save_adapter
from mobizo_kernels.lora.head import head_name
from mobizo_kernels.lora.peft_check import peft_key
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training import Readout, Scored, readout, rows_in_turn

if TYPE_CHECKING:
    from mobizo_kernels.executorch import Readout as NativeReadout
    from mobizo_kernels.executorch import Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """What a run goes on from.

    Attributes:
        summary: what there is to say of it: nothing where it is zero.
        keep: keeps it beside the journal, which replays from there, or removes that of an earlier run. To be
            called when the journal is open: what other runs keep is then safe, and the journal has said that
            the start is its own. Raises InputError.
    """

    summary: dict[str, Any]
    keep: Callable[[], None] = lambda: None


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
) -> Beginning:
    """Give a model in torch the start that `settings` ask for.

    A run that goes on with a journal takes the start that is kept with it.

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
            layers=settings.readout_layers,
            pad_token=pad_token,
        )

    return _begin(settings, recall, read_out, partial(save_adapter, model), score_test)


def begin_native(
    settings: TrainSettings, trainer: Trainer, dataset: Path, score_test: Callable[[], Scored]
) -> Beginning:
    """:func:`begin` for a program of ExecuTorch and the file of its data set."""

    def recall(kept: Path) -> None:
        try:
            trainer.load_adapter(kept)
        except (ValueError, OSError) as error:
            raise InputError(
                f"journal: the start {str(kept)!r} cannot be read ({first_line(error)})"
            ) from error

    made: list[bytes] = []  # of the start's file: the trainer is at work when it is kept

    def read_out() -> NativeReadout:
        rows = {"rows": settings.readout_rows, "validation_rows": settings.validation_rows}
        found = trainer.read_out(dataset, **rows)
        with TemporaryDirectory() as scratch:
            trainer.save_adapter(file := Path(scratch, PEFT_WEIGHTS))
            made.append(file.read_bytes())
        return found

    def save(kept: Path) -> None:
        with TemporaryDirectory() as scratch:
            (file := Path(scratch, PEFT_WEIGHTS)).write_bytes(made[-1])
            peft_from_device(file, kept)

    return _begin(settings, recall, read_out, save, score_test)


def _begin(
    settings: TrainSettings,
    recall: Callable[[Path], None],
    read_out: Callable[[], Readout | NativeReadout],
    save: Callable[[Path], object],
    score_test: Callable[[], Scored],
) -> Beginning:
    """`begin`, by what an engine has for each part of it."""
    journal = settings.journal
    kept = None if journal is None else start_directory(journal)
    fresh = journal is None or not (settings.resume and journal.exists())
    if not fresh and kept is not None:
        if settings.start != "zero" and any(path.exists() for path in adapter_files(kept)):
            recall(kept)
            return Beginning(_summary(None, score_test()))
        if settings.start != "readout":
            return Beginning({})
    forget = partial(_keep, journal, fresh, None)
    if settings.start == "zero":
        return Beginning({}, forget)
    _log.info("reading out")
    try:
        with blame_input("start"):
            made = read_out()
    except InputError as error:
        if settings.start == "readout" or settings.readout_layers == "several":
            raise
        _log.info("%s; the run begins without a readout", error)
        return Beginning({}, forget)
    found = {
        "layers": (),
        **vars(made),
        "losses": list(made.losses.items()),
    }  # a program reads the last alone
    summary = _summary(found, score_test())
    return Beginning(summary, partial(_keep, journal, fresh, save))


def _keep(journal: Path | None, fresh: bool, save: Callable[[Path], object] | None) -> None:
    """Save the start beside a journal; without `save` remove that of an earlier run, which this one would go
    on from.
    """
    if journal is None:
        return
    kept = start_directory(journal)
    try:
        if save is not None:
            with blame_input(f"journal: the start {str(kept)!r} cannot be written"):
                save(kept)
        elif fresh:
            with blame_input("journal"):
                for path in adapter_files(kept):
                    path.unlink(missing_ok=True)
    except BaseException:
        if fresh:  # nothing could go on with it
            journal.unlink(missing_ok=True)
        raise


def _summary(found: dict[str, Any] | None, test: Scored) -> dict[str, Any]:
    return {"readout": found, **{f"{name}_start": value for name, value in quality(test).items()}}


@torch.no_grad()
def _recall(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Adapt the model as the start does that was kept: its head, and the layers that are read. Of all else
    the journal says whether it is the same.

    Raises:
        ValueError: if the start is of linears of another shape, or the head has an adapter already.
    """
    name, head = head_name(model), model.get_output_embeddings()
    layers = {
        path: layer
        for path, layer in adapter_layers(model).items()
        if layer is not head and (b := tensors.get(peft_key(path, "B"))) is not None and b.any()
    }
    kept = {path: _factors(tensors, path, layer, layer.rank) for path, layer in layers.items()}
    directions, words = _factors(tensors, name, head)
    for path, layer in layers.items():
        a, b = kept[path]
        if a is not None and b is not None:
            layer.lora_a.copy_(a)
            layer.lora_b.copy_(b)
    if directions is not None and words is not None:  # else no readout was better than none
        tokens = words.any(dim=1).nonzero()[:, 0]
        adapt_head(model, tokens, directions, words[tokens])


def _factors(
    tensors: dict[str, torch.Tensor], name: str, linear: Any, rank: int | None = None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """A and B of a linear, None and None without both. Raises ValueError if their shapes are others."""
    a, b = (tensors.get(peft_key(name, factor)) for factor in ("A", "B"))
    if a is None or b is None:
        return None, None
    rank = len(a) if rank is None else rank
    for factor, tensor, expected in (
        ("A", a, [rank, linear.in_features]),
        ("B", b, [linear.out_features, rank]),
    ):
        if list(tensor.shape) != expected:
            raise ValueError(f"lora_{factor} of {name} must have shape {expected}, got {list(tensor.shape)}")
    return a, b
