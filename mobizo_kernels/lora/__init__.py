"""LoRA adapters whose B is perturbed per group of rows, inside the forward pass."""

from mobizo_kernels.lora.activation import invocation_starts
from mobizo_kernels.lora.adapter import Adapter, adapter_layers, adapter_of, bare, is_wrapped
from mobizo_kernels.lora.head import adapt_head, held_head, hold_head, tuned_layers
from mobizo_kernels.lora.layers import layers_from_first_adapted
from mobizo_kernels.lora.linear import Directions, MPLoRALinear
from mobizo_kernels.lora.native_adapter import device_from_peft, peft_from_device, save_device_adapter
from mobizo_kernels.lora.peft_check import check_plain_loras
from mobizo_kernels.lora.peft_load import load_adapter
from mobizo_kernels.lora.peft_model import to_peft
from mobizo_kernels.lora.peft_save import adapter_config, save_adapter
from mobizo_kernels.lora.rounding import rounds_inputs
from mobizo_kernels.lora.saving import saved_adapter
from mobizo_kernels.lora.targets import plain_name
from mobizo_kernels.lora.weights_fingerprint import adapter_fingerprints, base_dtype, model_fingerprint
from mobizo_kernels.lora.wrapping import unwrap, wrap

__all__ = [
    "Adapter",
    "Directions",
    "MPLoRALinear",
    "adapt_head",
    "adapter_config",
    "adapter_fingerprints",
    "adapter_layers",
    "adapter_of",
    "bare",
    "base_dtype",
    "check_plain_loras",
    "device_from_peft",
    "held_head",
    "hold_head",
    "invocation_starts",
    "is_wrapped",
    "layers_from_first_adapted",
    "load_adapter",
    "model_fingerprint",
    "peft_from_device",
    "plain_name",
    "rounds_inputs",
    "save_adapter",
    "save_device_adapter",
    "saved_adapter",
    "to_peft",
    "tuned_layers",
    "unwrap",
    "wrap",
]
