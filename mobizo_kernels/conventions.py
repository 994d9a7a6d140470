"""What transformers and PEFT decided and data, losses and files keep to, without importing either."""

from __future__ import annotations

from typing import Any

IGNORED = -100
"""The label of a token that is not to be predicted, in transformers as in torch's losses."""

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"

LORA_SCALING: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 8,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""What decides, beside the matrices, what a LoRA computes, and what it is where `PEFT_CONFIG` does not say.
executorch_ops/trainer/program/adapter.cpp looks at the same."""
