"""Models on the hub: found, or refused at once. Its client alone asks five times what cannot answer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import build_hf_headers, validate_repo_id

from mobizo_kernels.choices import SMOLLM2
from mobizo_kernels.errors import InputError, first_line, shortened

_SECONDS = 10.0  # to wait for the hub


@cache
def hub_source(name: str) -> str:
    """What from_pretrained is to be given for the model `name` of the hub.

    Returns:
        The name, or the directory of the model in the hub's cache if the hub cannot be asked.

    Raises:
        InputError: it is no name, or the hub cannot be asked and its cache does not have the model.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"model {shortened(name)}: expected {SMOLLM2!r}, a directory that is there, or a name on the hub"
        ) from error
    if constants.is_offline_mode():
        problem = "HF_HUB_OFFLINE is set"
    else:
        try:
            get_session().head(
                f"{constants.ENDPOINT}/{name}/resolve/main/config.json",
                headers=build_hf_headers(),
                timeout=_SECONDS,
            )
            return name  # whatever the answer: transformers has a sentence for each
        except Exception as error:  # of whichever library the hub's client is made of
            problem = f"the hub cannot be reached ({first_line(error)})"
    kept = try_to_load_from_cache(name, "config.json")
    if not isinstance(kept, str):
        raise InputError(
            f"model {name!r}: there is no directory of this name, the hub's cache does not have it, and "
            f"{problem}"
        )
    return str(Path(kept).parent)
