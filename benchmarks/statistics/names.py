"""Do two parameters of a model share a stream? The names of large models, hashed as they are in a run."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mobizo_kernels import ops

# The ten families most in use, each with as many layers as its largest model has.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 126},
    "qwen2": {"num_hidden_layers": 80},
    "qwen3": {"num_hidden_layers": 64},
    "qwen3_moe": {"num_hidden_layers": 94, "num_experts": 128},
    "mistral": {"num_hidden_layers": 88},
    "mixtral": {"num_hidden_layers": 56, "num_local_experts": 8},
    "gemma3_text": {"num_hidden_layers": 62},
    "phi3": {"num_hidden_layers": 40},
    "deepseek_v3": {"num_hidden_layers": 61, "n_routed_experts": 256},
    "gpt_oss": {"num_hidden_layers": 36, "num_local_experts": 128},
}
# Values of a model do not matter, so its widths are small; its names follow from depth and experts.
_NARROW = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "vocab_size": 128}


def parameter_names(family: str) -> list[str]:
    """The names of all parameters of the family's largest model."""
    options = FAMILIES[family]
    config = AutoConfig.for_model(family)
    for name, value in {**_NARROW, **options}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    types = getattr(config, "layer_types", None)
    if types:
        config.layer_types = [types[k % len(types)] for k in range(config.num_hidden_layers)]
    if getattr(config, "pad_token_id", None) is not None:
        config.pad_token_id = 0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return [name for name, _ in model.named_parameters()]


def collisions() -> tuple[dict[str, int], list[list[str]]]:
    """The number of names of each family, and the groups of different names that have one stream."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    counts, by_stream = {}, defaultdict(set)
    for family in FAMILIES:
        names = parameter_names(family)
        counts[family] = len(names)
        for name in names:
            by_stream[ops.parameter_stream(name)].add(name)
    return counts, [sorted(names) for names in by_stream.values() if len(names) > 1]
