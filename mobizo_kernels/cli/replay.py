"""What `mobizo replay` does: rebuild the adapter of a run from its journal, without any forward."""

from __future__ import annotations

from typing import Any, get_args

from peft import LoraConfig
from transformers import PreTrainedModel

from mobizo_kernels.choices import Dtype, Quantization
from mobizo_kernels.cli.files import check_distinct
from mobizo_kernels.cli.results import adapter_files, check_output
from mobizo_kernels.cli.settings import ReplaySettings
from mobizo_kernels.cli.start import start_directory
from mobizo_kernels.cli.task_settings import AUTOMATIC_DTYPE, as_json
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.journal import JournalHeader, read_journal, replay
from mobizo_kernels.lora import load_adapter, save_adapter, wrap
from mobizo_kernels.models import load_model, quantize_base


def replay_journal(settings: ReplaySettings) -> dict[str, Any]:
    """Write the PEFT directory of a run of `mobizo train`, or of its first steps, to `settings.out`.

    Returns:
        How many steps were applied, where it is, and the settings.

    Raises:
        InputError: the journal, the model or the start of the run is missing, damaged, or another one;
            nothing has been written then.
    """
    check_output(settings.out, settings.overwrite)
    kept = settings.start or start_directory(settings.journal)
    begins = settings.start is not None or any(path.exists() for path in adapter_files(kept))
    check_distinct(
        {"out": adapter_files(settings.out)},
        {"JOURNAL": settings.journal, "model": settings.model, "start": kept if begins else None},
    )
    with blame_input("journal"):
        header, records = read_journal(settings.journal)
    if header.of_parameters:
        raise InputError(
            f"journal: {settings.journal} is of a run on full parameters, expected one of adapters"
        )
    model, _ = load_model(settings.model, _dtype(settings, header))
    with blame_input("quantization"):
        quantize_base(model, settings.quantization)
    if begins:
        with blame_input("start"):
            load_adapter(model, kept)
    else:
        _adapt(model, header)
    with blame_input("journal"):
        steps = replay(model, settings.journal, settings.until)
    with blame_input("out"):
        save_adapter(model, settings.out)
    return {
        "steps": steps,
        "recorded": len(records),
        "written_to": str(settings.out),
        "settings": as_json(settings),
    }


def _dtype(settings: ReplaySettings, header: JournalHeader) -> str:
    """The type of the base model whose fingerprint the journal has, if nothing else is asked for: that in
    which the run held it, or that of which a quantised program was made.
    """
    if settings.dtype != "auto":
        return settings.dtype
    if header.base_dtype in get_args(Dtype):
        return str(header.base_dtype)
    return AUTOMATIC_DTYPE["executorch" if header.base_dtype in get_args(Quantization) else "eager"]


def _adapt(model: PreTrainedModel, header: JournalHeader) -> None:
    """Wrap a model as `mobizo train` does for the run of a journal.

    Raises:
        InputError: the adapters differ in rank or scaling, which those of `mobizo train` do not, or the model
            has no such linears.
    """
    names = [parameter.name.removesuffix(".weight") for parameter in header.parameters]
    kinds = {(parameter.shape[-1], parameter.scaling) for parameter in header.parameters}
    rank, scaling = min(kinds, key=str)
    if len(kinds) != 1 or scaling is None:
        raise InputError("journal: its adapters are of several ranks or scalings; --start has to give them")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank * scaling,  # type: ignore[arg-type]  # a float will do
        **_targets(names),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=list(header.invocation_tokens or ()) or None,
    )
    with blame_input("model"):
        wrap(model, config, seed=header.run_seed)


def _targets(names: list[str]) -> dict[str, Any]:
    """The linears as a configuration has them that a person can read, where they are equal in all layers."""
    parts = [name.split(".") for name in names]
    places = [[part for part in name if part.isdigit()] for name in parts]
    if any(len(place) != 1 for place in places):
        return {"target_modules": names}
    layers = sorted({int(place[0]) for place in places})
    leaves = sorted({name[-1] for name in parts})
    if len(layers) * len(leaves) != len(names):
        return {"target_modules": names}
    return {"target_modules": leaves, "layers_to_transform": layers}
