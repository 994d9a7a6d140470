"""Whether the linears of a model round what they are given."""

from __future__ import annotations

from torch import nn

# What torchao's weights keep of it; it is None where the weights alone are quantised.
_OF_INPUTS = ("act_quant_kwargs", "activation_quantization")


def rounds_inputs(model: nn.Module) -> bool:
    """Whether a linear rounds its inputs to a few bits, each within a range of its own, as torchao's do over
    dynamically quantised activations. A change in the last bit of an input may then move it by a whole step.
    """
    return any(
        getattr(parameter, name, None) is not None for parameter in model.parameters() for name in _OF_INPUTS
    )
