"""Base weights of 8 and 4 bits for training in torch, through torchao."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from mobizo_kernels.choices import Quantization

QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
INT4_GROUP = 32  # weights that share a scale; XNNPACK asks for multiples of 32


def require_quantization(kind: str) -> None:
    """Raise ValueError unless base weights can be quantised so."""
    if kind not in QUANTIZATIONS:
        raise ValueError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {kind!r}")


def quantize_base(model: nn.Module, kind: str) -> None:
    """Quantise the linears of a causal LM, in place, but for its LM head, whose rounding would go straight
    into the losses.

    Adapters, losses and updates stay float32 over it, so `wrap` may come before or after.

    Args:
        model: in float32 or bfloat16.
        kind: "none"; "int8": weights of 8 bits with a scale for each output; "int8-dynamic": the same, and
            what a linear is given is rounded to 8 bits between the least and the greatest of each token, as
            in a training program, so that the product is one of whole numbers; "int4": weights of 4 bits with
            a scale for every 32 inputs, 8 bits where the width of a linear is no multiple of 32. But for
            "int8-dynamic" activations keep their type.

    Raises:
        ValueError: if `kind` is none of these.
        ImportError: if torchao is not installed.
    """
    require_quantization(kind)
    if kind == "none":
        return
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        quantize_,
    )
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType

    int8 = Int8WeightOnlyConfig()
    if kind == "int8-dynamic":  # a range that is not centred: half the noise of a centred one in a loss
        int8 = Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC)
    int4 = IntxWeightOnlyConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]
        granularity=PerGroup(INT4_GROUP),
    )
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    for module in list(model.modules()):
        if isinstance(module, nn.Linear) and module is not head:
            whole_groups = module.in_features % INT4_GROUP == 0
            quantize_(module, int4 if kind == "int4" and whole_groups else int8)
