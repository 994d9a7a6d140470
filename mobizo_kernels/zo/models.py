"""The model that a run tunes: what other libraries put around it, taken off or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn

from mobizo_kernels.lora import bare, is_wrapped, to_peft, wrap
from mobizo_kernels.loss.compiled import not_compiled
from mobizo_kernels.parameters import has_wrapped_parameters

_PARALLEL = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")


@contextmanager
def model_to_tune(model: nn.Module, several: bool = False) -> Iterator[tuple[nn.Module, bool]]:
    """The model of transformers inside of `model`, and whether it is to be compiled.

    The adapter of a PeftModel is taken over by :func:`mobizo_kernels.wrap`, and given back if an error leaves
    the block; that of a model of :func:`mobizo_kernels.wrap_parameters` stays PEFT's.

    Args:
        model: as :class:`ZerothOrder` takes it.
        several: processes make the steps together.

    Raises:
        ValueError: if the model is made for several devices or processes, there are several processes that do
            not make the steps together, or the adapter of a PeftModel cannot be taken over.
    """
    model, compiled = not_compiled(model)
    if several and isinstance(model, nn.parallel.DistributedDataParallel):
        model, compiled = not_compiled(model.module)  # nothing has a gradient that it could reduce
    if type(model).__name__ in _PARALLEL:
        raise ValueError(
            f"model must be on one device in one process, got {type(model).__name__}: give the model inside "
            "it, and do not prepare it for several"
        )
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not several and initialized and (processes := torch.distributed.get_world_size()) > 1:
        raise ValueError(
            f"process_group must be given where there are {processes} processes, each of which would go a "
            "way of its own: torch.distributed.group.WORLD for all"
        )
    taken = isinstance(model, PeftModel) and not is_wrapped(model) and not has_wrapped_parameters(model)
    if taken:
        wrap(model)
    try:
        yield bare(model), compiled
    except BaseException:
        if taken:
            to_peft(model)
        raise
