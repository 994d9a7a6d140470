"""Checkpoints of a trainer: PEFT's files with the journal of the run beside them, and the way back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from mobizo_kernels.journal.file import JournalFile
from mobizo_kernels.journal.header import read_header
from mobizo_kernels.lora import (
    adapter_fingerprints,
    adapter_layers,
    load_adapter,
    saved_adapter,
    tuned_layers,
)
from mobizo_kernels.zo import ZerothOrder

JOURNAL = "run.journal"


def begin_journal(zo: ZerothOrder, directory: Path) -> None:
    """Record the steps of a new run in a directory. The journal of an earlier run there gives way, as its
    checkpoints do.

    Raises:
        OSError: if a run that still goes on holds that journal, or it cannot be written.
    """
    zo.from_first(lambda: _make_way(directory / JOURNAL))
    zo.open_journal(directory / JOURNAL)


def keep_journal(zo: ZerothOrder, checkpoint: Path) -> None:
    """Copy the journal of a run, as it is now, into a checkpoint."""
    if zo.journal is not None:
        shutil.copyfile(zo.journal.path, checkpoint / JOURNAL)


@torch.no_grad()
def resume_journal(zo: ZerothOrder, checkpoint: Path, directory: Path) -> None:
    """Make the steps of a checkpoint's journal again, without any forward, and record those that follow.

    Args:
        zo: that made no step, of the model before the first step, or of one whose B was zero then.
        checkpoint: that is gone on from; it is only read.
        directory: of the run.

    Raises:
        OSError: if a file is missing or cannot be read or written.
        ValueError: if the run of the checkpoint is another one, naming what differs, or its adapter is not
            what its journal gives.
    """
    source = checkpoint / JOURNAL
    if not source.is_file():
        raise FileNotFoundError(f"resume_from_checkpoint: {checkpoint} holds no {JOURNAL}")
    header = read_header(source)
    tuned: list[torch.Tensor] = [layer.lora_b for layer in tuned_layers(zo.model).values()]
    whole: list[torch.Tensor] = []
    for layer in adapter_layers(zo.model).values():
        whole += layer.lora_a, layer.lora_b
    given = [tensor.clone() for tensor in whole]
    here = [tensor.clone() for tensor in tuned]
    try:
        load_adapter(zo.model, saved_adapter(zo.model, checkpoint))  # LoRA-A, drawn anew in every process
        saved = [tensor.clone() for tensor in tuned]
        for start in (here, [torch.zeros_like(tensor) for tensor in tuned]):
            _set(tuned, start)
            if adapter_fingerprints(zo.model)[1] == header.lora_b:
                break
        else:
            raise ValueError(
                f"resume_from_checkpoint: the run of {checkpoint} began with a LoRA-B that is neither zero "
                "nor that of the model; load what it began with first"
            )
        # Of several ranks the first alone writes; all make the steps again.
        content = source.read_bytes()
        with _replaced(directory / JOURNAL, content) if zo.rank == 0 else nullcontext():
            zo.apply(zo.open_journal(directory / JOURNAL, resume=True))
            if not all(torch.equal(made, kept) for made, kept in zip(tuned, saved, strict=True)):
                zo.close_journal()
                raise ValueError(
                    f"resume_from_checkpoint: the adapter of {checkpoint} is not what its journal gives"
                )
    except BaseException:
        _set(whole, given)
        raise


@contextmanager
def _replaced(path: Path, content: bytes) -> Iterator[None]:
    """`content` at `path`, and what was there again if the block raises.

    Raises:
        BlockingIOError: if a run that still goes on holds what is there.
        OSError: if the file cannot be written.
    """
    aside = path.with_name(f"{path.name}.aside")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        JournalFile.open(path).close()
        path.replace(aside)
    try:
        path.write_bytes(content)
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        if aside.exists():
            aside.replace(path)
        raise
    aside.unlink(missing_ok=True)


def _make_way(path: Path) -> None:
    """Remove the journal of an earlier run. Raises BlockingIOError if that still goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        JournalFile.open(path).close()
        path.unlink()


def _set(tensors: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
