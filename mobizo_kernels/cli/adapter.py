"""What `mobizo adapter` does: bring an adapter from the native trainer to PEFT, and back."""

from __future__ import annotations

from typing import Any

from mobizo_kernels.cli.files import check_distinct
from mobizo_kernels.cli.results import adapter_files, check_output, check_output_file
from mobizo_kernels.cli.settings import AdapterSettings
from mobizo_kernels.cli.task_settings import as_json
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.lora import device_from_peft, peft_from_device
from mobizo_kernels.models import load_model


def convert_adapter(settings: AdapterSettings) -> dict[str, Any]:
    """Turn a file into a directory or a directory into a file, whichever `settings.source` is not.

    Returns:
        What was made, and the settings.

    Raises:
        InputError: FROM is no adapter, TO is there already, or the base model is missing or another one;
            nothing has been written then.
    """
    inputs = {"FROM": settings.source, "model": settings.model}
    if settings.source.is_dir():
        check_distinct({"TO": [settings.target]}, inputs)
        made = _to_device(settings)
    else:
        check_output(settings.target, settings.overwrite, "TO")
        check_distinct({"TO": adapter_files(settings.target)}, inputs)
        with blame_input("adapter"):
            peft_from_device(settings.source, settings.target)
        made = "PEFT directory"
    return {"made": made, "written_to": str(settings.target), "settings": as_json(settings)}


def _to_device(settings: AdapterSettings) -> str:
    if settings.model is None:
        raise InputError(
            "model: expected --model, whose fingerprint goes into the file, with a PEFT directory"
        )
    check_output_file(settings.target, "TO", overwrite=settings.overwrite)
    model, _ = load_model(settings.model, settings.dtype)
    with blame_input("adapter"):
        device_from_peft(model, settings.source, settings.target)
    return "device adapter"
