"""Base weights of 8 and 4 bits, through torchao, in the forms that XNNPACK has kernels for."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.utils.quant_utils import is_dequant
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mobizo_kernels.lora import MPLoRALinear, held_head
from mobizo_kernels.models.quantization import INT4_GROUP

_log = logging.getLogger(__name__)


def quantize(model: PreTrainedModel, kind: str, *, head: bool = True) -> None:
    """Quantise every linear of the decoder, its LM head and the token embedding, in place.

    Args:
        model: in float32; tied embeddings are untied, linears may be replaced.
        kind: "none"; "int8": weights of 8 bits with a scale for each output, activations float32;
            "int8-dynamic": the same weights, and the inputs of a linear are rounded to 8 bits with a range of
            their own for each token, so that the product is one of whole numbers; "int4":
            weights of 4 bits with a scale for every 32 inputs, activations as of "int8-dynamic", for XNNPACK
            has no product of float32 with such weights. A linear whose width is no multiple of 32 gets
            weights of 8 bits. The embedding has 8 bits in all, a scale for each token.
        head: also the LM head; one with an adapter that runs tune is quantised in any case.

    Raises:
        ValueError: if the decoder has weights that are not those of linears.
    """
    if kind == "none":
        return
    embedding, lm_head = model.get_input_embeddings(), model.get_output_embeddings()
    if isinstance(lm_head, MPLoRALinear):
        # Whoever tunes its adapter computes all of it.
        lm_head, head = lm_head.base_layer, head or held_head(model) is None
    if lm_head.weight is embedding.weight:
        lm_head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for name, module in list(model.named_modules()):
        if not isinstance(module, (nn.Linear, Conv1D)) or (module is lm_head and not head):
            continue
        if kind == "int4" and as_linear(module).in_features % INT4_GROUP:
            _log.warning("%s has %d inputs, no multiple of 32: 8 bits", name, as_linear(module).in_features)
        model.set_submodule(name, quantize_linear(module, kind))
    model.set_input_embeddings(Int8Embedding(embedding))
    whole = [name for name, parameter in model.named_parameters() if parameter.dim() > 2]
    if whole:
        raise ValueError(
            f"quantization must be none for {type(model).__name__}: {whole[0]} is not the weight of a linear"
        )


def quantize_linear(module: nn.Linear | Conv1D, kind: str) -> nn.Linear:
    """What stands for a linear in a model that is quantised so, see :func:`quantize`; not for "none".

    Args:
        module: in float32; it may be changed.
        kind: as of `quantize`.
    """
    linear = as_linear(module)
    if kind == "int8-dynamic":
        quantize_(
            linear,
            Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0)),
        )
    elif kind == "int4" and linear.in_features % INT4_GROUP == 0:
        quantize_(
            linear,
            Int8DynamicActivationIntxWeightConfig(
                weight_dtype=torch.int4,  # type: ignore[attr-defined]
                weight_granularity=PerGroup(INT4_GROUP),
            ),
        )
    else:
        if linear.bias is not None and type(linear).forward is nn.Linear.forward:
            linear = SeparateLinear(linear)
        quantize_(linear, IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)))
    return linear


def as_linear(module: nn.Linear | Conv1D) -> nn.Linear:
    """A linear itself, or one with the weight and the bias of a Conv1D, which keeps its weight transposed."""
    if isinstance(module, nn.Linear):
        return module
    linear = nn.Linear(module.nx, module.nf, device="meta").requires_grad_(False)
    linear.weight = nn.Parameter(module.weight.detach().T.contiguous(), requires_grad=False)
    linear.bias = module.bias
    return linear


class SeparateLinear(nn.Linear):
    """A linear that adds its bias after the product: XNNPACK's kernel for weights that alone are quantised
    takes one, but ExecuTorch's serializer refuses it.

    Args:
        linear: gives its weight and its bias.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        return F.linear(x, self.weight) + self.bias


class Int8Embedding(nn.Module):
    """A token embedding of 8 bits with a scale for each token; rows become float32 as they are looked up.

    Args:
        embedding: what it stands for. Some multiply what they look up, so its values count, not its weight.
    """

    values: torch.Tensor
    scales: torch.Tensor

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        rows = embedding(torch.arange(len(embedding.get_parameter("weight")))).detach()
        scales = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("values", (rows / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> float32 [..., H]."""
        return F.embedding(input_ids, self.values).float() * F.embedding(input_ids, self.scales)


class WeightOnlyLinearConfig(LinearConfig):
    """Gives XNNPACK the linears whose weight alone is quantised: it has kernels for them, but ExecuTorch's
    configuration asks for quantised inputs too.
    """

    def _detect_precision(self, node: Node) -> ConfigPrecisionType:
        precision = super()._detect_precision(node)
        weight_only = precision == ConfigPrecisionType.STATIC_QUANT and not is_dequant(
            node.all_input_nodes[0]
        )
        return ConfigPrecisionType.DYNAMIC_QUANT if weight_only else precision

    def _get_act_deps(
        self, node: Node, ep: ExportedProgram, precision: ConfigPrecisionType
    ) -> tuple[bool, list[Node]]:
        if not is_dequant(node.all_input_nodes[0]):
            return True, []
        return super()._get_act_deps(node, ep, precision)
