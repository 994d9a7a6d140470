"""From a journal back to the tuned adapter or parameters, without any forward."""

from __future__ import annotations

from dataclasses import replace as replaced
from typing import Any

import torch
from torch import nn

from mobizo_kernels.journal.header import JournalHeader, JournalParameter, PathLike, difference
from mobizo_kernels.journal.journal import read_journal
from mobizo_kernels.lora import (
    MPLoRALinear,
    adapter_fingerprints,
    adapter_layers,
    adapter_of,
    bare,
    base_dtype,
    is_wrapped,
    model_fingerprint,
    tuned_layers,
)
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.optim.optimizers import make_optimizer
from mobizo_kernels.parameters import trained_parameters

_OTHERS = {
    "lora_a": "is of another LoRA-A, as another seed of wrap draws it",
    "lora_b": "begins with another LoRA-B, which is to be loaded first",
}


@torch.no_grad()
def replay(model: nn.Module, path: PathLike, until: int | None = None) -> int:
    """Apply the steps of a journal to a model, without any forward.

    The result is the adapter of the recorded run bit for bit if B is now what it was before the run's first
    step: zero after :func:`mobizo_kernels.wrap`, else what the run loaded. An adapter that the run did not
    tune, the readout of its start, has to be there as well and is left as it is. Of
    a run on full parameters it is the parameters, if the model is now what it was before that run.

    Args:
        model: wrapped as for the run. One whose parameters were tuned may be unwrapped.
        path: of the journal.
        until: number of steps to apply; all by default.

    Returns:
        The number of steps applied.

    Raises:
        OSError: if the file cannot be read.
        ValueError: before anything is written, if the journal is damaged, if the model, its adapter or the
            LoRA-B with which the run began is another one, or other parameters require a gradient, naming
            what differs, or if `until` is not within the journal. Earlier versions of the format do not know
            of the adapter.
    """
    model = bare(model)
    header, records = read_journal(path)
    if not header.of_parameters:
        adapter_of(model)
    _check_model(header, model, path)
    until = len(records) if until is None else until
    if not 0 <= until <= len(records):
        raise ValueError(f"until must be from 0 to {len(records)}, the steps of journal {path}, got {until}")
    if header.of_parameters:
        named = [*trained_parameters(model)]
    else:
        layers = {f"{name}.weight": layer for name, layer in adapter_layers(model).items()}
        named = [(parameter.name, layers[parameter.name].lora_b) for parameter in header.parameters]
    optimizer = make_optimizer(named, header.optimizer, header.distribution)
    optimizer.apply_steps(header.run_seed, 0, records[:until])
    return until


def tuned_adapters(model: nn.Module) -> tuple[JournalParameter, ...]:
    """The LoRA-B that a run tunes of a wrapped model, as a journal lists them."""
    return tuple(_parameter(name, layer) for name, layer in tuned_layers(model).items())


def _parameter(name: str, layer: MPLoRALinear) -> JournalParameter:
    return JournalParameter(f"{name}.weight", tuple(layer.lora_b.shape), layer.stream, layer.scaling)


def tuned_weights(model: nn.Module) -> tuple[JournalParameter, ...]:
    """The parameters that require a gradient as the journal of a run on full parameters lists them."""
    return tuple(
        JournalParameter(name, tuple(parameter.shape), parameter_stream(name), None)
        for name, parameter in trained_parameters(model)
    )


def model_fields(model: nn.Module) -> dict[str, Any]:
    """What the header of a run says of a model as it is before the first step."""
    base = {"base_fingerprint": model_fingerprint(model), "base_dtype": base_dtype(model)}
    if not is_wrapped(model):
        without = {"invocation_tokens": (), "lora_a": None, "lora_b": None}
        return {**base, "parameters": tuned_weights(model), **without}
    lora_a, lora_b = adapter_fingerprints(model)
    return {
        **base,
        "parameters": tuned_adapters(model),
        "invocation_tokens": tuple(adapter_of(model).config.alora_invocation_tokens or ()),
        "lora_a": lora_a,
        "lora_b": lora_b,
    }


def _check_model(header: JournalHeader, model: nn.Module, path: PathLike) -> None:
    """Raise ValueError unless the updates of a journal are those of this model's adapter."""
    here = model_fields(model)
    if is_wrapped(model) and here["lora_a"] == header.lora_a:
        # Of all adapters: which of them were tuned is the run's to say.
        names = {parameter.name for parameter in header.parameters}
        layers = adapter_layers(model).items()
        here["parameters"] = tuple(_parameter(*entry) for entry in layers if f"{entry[0]}.weight" in names)
    if all(parameter.scaling is None for parameter in header.parameters):
        here["parameters"] = tuple(replaced(parameter, scaling=None) for parameter in here["parameters"])
    # The type of an adapter's base decides on losses, which a replay does not compute.
    types = ("base_dtype",) if header.of_parameters else ()
    for name in ("parameters", "invocation_tokens", "lora_a", *types, "base_fingerprint", "lora_b"):
        there = getattr(header, name)
        if there is not None and there != here[name]:
            what = _OTHERS.get(name, "is of another model")
            raise ValueError(f"journal {path} {what}: {difference(name, there, here[name], 'here')}")
