"""From a journal back to the adapter, without any forward."""

from __future__ import annotations

import torch
from torch import nn

from mobizo_kernels.lora import adapter_layers, adapter_of, model_fingerprint
from mobizo_kernels.zo.base_optimizer import ZOOptimizer
from mobizo_kernels.zo.journal import JournalParameter, PathLike, first_difference, read_journal
from mobizo_kernels.zo.optimizers import make_optimizer
from mobizo_kernels.zo.records import Records
from mobizo_kernels.zo.seeds import query_seeds


@torch.no_grad()
def replay(model: nn.Module, path: PathLike, until: int | None = None) -> int:
    """Repeat the updates of a journal on a wrapped model, without any forward.

    The result is the adapter of the recorded run bit for bit if B is now what it was before the run's first
    step: zero after :func:`mobizo_kernels.wrap`, else what the run loaded.

    Args:
        model: wrapped as for the run.
        path: of the journal.
        until: number of steps to repeat; all by default.

    Returns:
        The number of steps repeated.

    Raises:
        OSError: if the file cannot be read.
        ValueError: before anything is written, if the journal is damaged or of another model, or `until` is
            not within it.
    """
    adapter_of(model)
    header, records = read_journal(path)
    tuned = tuned_adapters(model)
    if header.parameters != tuned:
        there, mine = first_difference(header.parameters, tuned)
        raise ValueError(f"journal {path} is of another model: it has {there!r} where the model has {mine!r}")
    if header.base_fingerprint is not None and header.base_fingerprint != (here := model_fingerprint(model)):
        raise ValueError(
            f"journal {path} is of another model: its base_fingerprint is {header.base_fingerprint}, "
            f"that of the model {here}"
        )
    until = len(records) if until is None else until
    if not 0 <= until <= len(records):
        raise ValueError(f"until must be from 0 to {len(records)}, the steps of journal {path}, got {until}")
    layers = adapter_layers(model).values()
    named = [(parameter.name, layer.lora_b) for parameter, layer in zip(tuned, layers, strict=True)]
    optimizer = make_optimizer(named, header.optimizer, header.lr, header.distribution)
    redo_steps(optimizer, header.run_seed, 0, records[:until])
    return until


@torch.no_grad()
def redo_steps(optimizer: ZOOptimizer, run_seed: int, first: int, records: Records) -> None:
    """Make recorded steps again.

    Args:
        optimizer: of the parameters; its state is that of before the first of the steps.
        run_seed: of the run.
        first: number of the first of the steps.
        records: of the steps.
    """
    queries = records.coeffs.shape[1]
    if not optimizer.rule.plain:
        for step, record in enumerate(records, first):
            optimizer.redo(query_seeds(run_seed, step, queries), record)
    elif records.applied.any():
        # In float32 the updates of many steps are one chain of fused multiply-adds: one pass takes them all.
        steps = (records.applied.nonzero()[:, 0] + first).tolist()
        seeds = torch.cat([query_seeds(run_seed, step, queries) for step in steps])
        optimizer.perturb(seeds, records.coeffs[records.applied].flatten())


def tuned_adapters(model: nn.Module) -> tuple[JournalParameter, ...]:
    """The LoRA-B of a wrapped model as a journal lists them."""
    return tuple(
        JournalParameter(f"{name}.weight", tuple(layer.lora_b.shape), layer.stream)
        for name, layer in adapter_layers(model).items()
    )
