"""LoRA adapters whose B is perturbed per group of rows, inside the forward pass."""

from mobizo_kernels.lora.linear import Directions, MPLoRALinear
from mobizo_kernels.lora.peft_io import load_adapter, save_adapter
from mobizo_kernels.lora.targets import plain_name
from mobizo_kernels.lora.wrapping import Adapter, adapter_layers, adapter_of, is_wrapped, unwrap, wrap

__all__ = [
    "Adapter",
    "Directions",
    "MPLoRALinear",
    "adapter_layers",
    "adapter_of",
    "is_wrapped",
    "load_adapter",
    "plain_name",
    "save_adapter",
    "unwrap",
    "wrap",
]
