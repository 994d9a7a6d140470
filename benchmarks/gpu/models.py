"""Models of random weights in the shapes of public ones, for benchmarks on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mobizo_kernels.models import quantize_base

SIZES = {
    "TinyLlama-1.1B": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "Llama-2-7B": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}

SMALL = {name: max(2, size // 32) for name, size in SIZES["TinyLlama-1.1B"].items()}
"""For a run without a GPU, whose times mean nothing."""


def random_model(sizes: dict[str, int], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A Llama with an LM head of its own weights; the same weights each time."""
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, max_position_embeddings=2048, tie_word_embeddings=False)
    with device:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def parameter_shapes(sizes: dict[str, int]) -> list[torch.Size]:
    """The shapes of all parameters of such a model."""
    model = random_model(sizes, torch.float32, torch.device("meta"))
    return [parameter.shape for parameter in model.parameters()]


def bases() -> dict[str, Callable[[nn.Module], None]]:
    """What makes the linears of a model smaller in place, but for its LM head, by name: those whose libraries
    are there.
    """
    found: dict[str, Callable[[nn.Module], None]] = {}
    if find_spec("torchao") is not None:
        found["int8"] = lambda model: quantize_base(model, "int8")
    if find_spec("bitsandbytes") is not None:
        found["nf4"] = to_nf4
    return found


def to_nf4(model: nn.Module) -> None:
    """Weights in the 4-bit type of QLoRA (arXiv 2305.14314), in place."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module is not head:
            weight, device = module.weight, module.weight.device
            small = Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=weight.dtype,
                quant_type="nf4", device="meta",
            )  # fmt: skip
            small.weight = Params4bit(weight.data.cpu(), requires_grad=False, quant_type="nf4").to(device)
            model.set_submodule(name, small)
