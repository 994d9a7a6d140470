"""Rotary embeddings in a form that XNNPACK takes, with frequencies that do not change on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel


def hold_frequencies(model: PreTrainedModel, max_length: int, name: str = "max_length") -> None:
    """Let rotary embeddings whose frequencies depend on the length of the input keep those of short ones.

    A graph has one set of them: transformers recomputes them (dynamic NTK), or takes others (LongRoPE, arXiv
    2402.13753), for an input that is longer than those of the pre-training.

    Args:
        model: a decoder of transformers, changed in place.
        max_length: the longest sequence.
        name: of that length, in errors.

    Raises:
        ValueError: if the frequencies change up to that length.
    """
    modules: Any = model.modules()
    for module in modules:
        kinds = getattr(module, "rope_type", None)
        for layer, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if kind is None or not ("dynamic" in kind or kind == "longrope"):
                continue
            limit = _limit(module, layer, kind)
            if max_length > limit:
                raise ValueError(
                    f"{name} must be at most {limit}, got {max_length}: beyond, the rotary embedding of "
                    f"{type(model).__name__} ({kind}) changes with the length"
                )
            prefix = "" if layer is None else f"{layer}_"
            getattr(module, f"{prefix}inv_freq").copy_(getattr(module, f"{prefix}original_inv_freq"))
            module.rope_type = "default" if layer is None else {**module.rope_type, layer: "default"}


def _limit(module: Any, layer: str | None, kind: str) -> int:
    """The longest input with the frequencies of short ones."""
    if kind != "longrope":
        return int(module.original_max_seq_len)
    parameters = module.config.rope_parameters
    return int((parameters if layer is None else parameters[layer])["original_max_position_embeddings"])


@contextmanager
def product_rotation(model: PreTrainedModel) -> Iterator[None]:
    """Rotary embeddings by a product with a signed permutation: XNNPACK cuts no tensor of dynamic shape."""
    home = sys.modules[type(model.base_model).__module__]
    original: Callable[[torch.Tensor], torch.Tensor] | None = getattr(home, "rotate_half", None)
    if original is None:
        yield
        return
    matrices: dict[int, torch.Tensor] = {}  # some models rotate only the first features of a head

    def rotate_half(x: torch.Tensor) -> torch.Tensor:
        width = x.shape[-1]
        if width not in matrices:
            # Row i of the rotated identity says where feature i goes; a linear wants it the other way round.
            matrices[width] = original(torch.eye(width)).T.contiguous()
        return F.linear(x.contiguous(), matrices[width])

    with patch.object(home, "rotate_half", rotate_half):
        yield
