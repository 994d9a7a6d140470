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
def model_to_tune(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The model of transformers inside of `model`, and whether it is to be compiled.

    The adapter of a PeftModel is taken over by :func:`mobizo_kernels.wrap`, and given back if an error leaves
    the block; that of a model of :func:`mobizo_kernels.wrap_parameters` stays PEFT's.

    Raises:
        ValueError: if the model is made for several devices or processes, there are several processes, or the
            adapter of a PeftModel cannot be taken over.
    """
    model, compiled = not_compiled(model)
    if type(model).__name__ in _PARALLEL:
        raise ValueError(
            f"model must be on one device in one process, got {type(model).__name__}: give the model inside "
            "it, and do not prepare it for several"
        )
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several and (processes := torch.distributed.get_world_size()) > 1:
        raise ValueError(f"training must run in one process, got {processes}: each would go a way of its own")
    taken = isinstance(model, PeftModel) and not is_wrapped(model) and not has_wrapped_parameters(model)
    if taken:
        wrap(model)
    try:
        yield bare(model), compiled
    except BaseException:
        if taken:
            to_peft(model)
        raise
