"""First-order training by ExecuTorch's wheel: the joint graph of loss and gradients, lowered in three ways.

`torch.export.experimental._export_forward_backward` makes the graph; SGD on the parameters is the driver's.
As the graph comes, each backward product with a weight goes through a transposed copy of it that is made in
every step, and the backward of norms, softmax and SiLU has operations that XNNPACK has no kernels for.
`better_form` says the same in others: it is to the backward what
mobizo_kernels/executorch/xnnpack_rewrites.py is to the forward, and no part of ExecuTorch. Its price: the
file and the packed weights hold every weight twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from executorch.backends.transforms.utils import create_constant_placeholder, get_param_tensor, is_param_node
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeProgramManager, to_edge, to_edge_transform_and_lower
from torch import nn
from torch.export import ExportedProgram
from torch.export.experimental import _export_forward_backward
from torch.export.graph_signature import InputKind
from torch.fx import Node

from mobizo_kernels.executorch.partitioner import InferViewSizes, LevelPartitioner

aten = torch.ops.aten
_TENSOR_FORMS = {aten.mul.Scalar: aten.mul.Tensor, aten.add.Scalar: aten.add.Tensor}
_TRAINED = "lora_b"


class FirstOrderLinear(nn.Module):
    """LoRA-FA: A frozen, B [r, out] trained."""

    lora_a: torch.Tensor

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("lora_a", 2.0 * torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(rank, base.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, T, in] -> [B, T, out]."""
        shrunk = F.linear(x, self.lora_a).view(1, -1, len(self.lora_a))
        # A batched product, for XNNPACK has no other whose right factor is not constant.
        return self.base(x) + torch.bmm(shrunk, self.lora_b[None]).view(*x.shape[:-1], -1)


def lower_first_order(
    module: nn.Module, arguments: tuple[torch.Tensor, ...], lowering: str
) -> EdgeProgramManager:
    """The loss of a module and the gradients of its parameters, in a method named forward.

    Args:
        lowering: "rewritten" in forms that suit XNNPACK, and given to it whole; "per-op", operation by
            operation, as ExecuTorch's own partitioner can take the graph; "portable", to no delegate.
    """
    with torch.enable_grad():
        joint = _export_forward_backward(torch.export.export(module, arguments, strict=False))
    rewrite(joint, all_forms=lowering == "rewritten")
    if lowering == "portable":
        return to_edge(joint)
    if lowering == "per-op":
        return to_edge_transform_and_lower(joint, partitioner=[XnnpackPartitioner(per_op_mode=True)])
    passes = [InferViewSizes()]
    return to_edge_transform_and_lower(joint, transform_passes=passes, partitioner=[LevelPartitioner()])


def rewrite(ep: ExportedProgram, all_forms: bool) -> None:
    """Change a joint graph in place, and its values by rounding only.

    Args:
        all_forms: use every better form; otherwise only what it takes to run at all.
    """
    for node in list(ep.graph.nodes):
        with ep.graph.inserting_before(node):
            new = executable_form(ep, node) or (better_form(ep, node) if all_forms else None)
        if new is not None:
            if "val" not in new.meta:
                new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
    ep.graph.eliminate_dead_code()
    ep.graph_module.recompile()


def executable_form(ep: ExportedProgram, node: Node) -> Node | None:
    """What SiLU's backward can use for ones like an empty tensor, which ExecuTorch has no kernel to make."""
    if node.target == aten.full_like.default and node.args[0].target == aten.empty_permuted.default:
        return scalar(ep, node.args[1])
    return None


def better_form(ep: ExportedProgram, node: Node) -> Node | None:
    """What computes the same as a node and suits XNNPACK, or None."""
    call = ep.graph.call_function
    if node.target == aten.alias.default:
        return node.args[0]
    if node.target == aten.permute.default and node.args[0].target == aten.permute.default:
        source, inner = node.args[0].args
        return source if [inner[axis] for axis in node.args[1]] == sorted(inner) else None
    if node.target == aten.mm.default:
        left, right = node.args
        if right.target == aten.permute.default and is_frozen(ep, right.args[0]):
            return call(aten.linear.default, (left, right.args[0]))
        if is_frozen(ep, right):
            transposed = get_param_tensor(ep, right).T.contiguous()
            return call(aten.linear.default, (left, constant(ep, f"{right.name}_transposed", transposed)))
    if node.target in _TENSOR_FORMS:
        return call(_TENSOR_FORMS[node.target], (node.args[0], scalar(ep, node.args[1])))
    if node.target == aten.pow.Tensor_Scalar and node.args[1] == 3:
        square = call(aten.mul.Tensor, (node.args[0], node.args[0]))
        square.meta = dict(node.meta)
        return call(aten.mul.Tensor, (square, node.args[0]))
    if node.target == aten.sum.dim_IntList and node.args[2:] == (True,):
        shape = node.args[0].meta["val"].shape
        if [axis % len(shape) for axis in node.args[1]] == [len(shape) - 1]:
            ones = constant(ep, f"ones_of_{shape[-1]}", torch.ones(1, shape[-1]))
            return call(aten.linear.default, (node.args[0], ones))
    return None


def is_frozen(ep: ExportedProgram, node: Node) -> bool:
    """Whether a node is a weight that is not trained."""
    return is_param_node(ep, node) and _TRAINED not in ep.graph_signature.inputs_to_parameters.get(
        node.name, ""
    )


def scalar(ep: ExportedProgram, value: float) -> Node:
    """The number as a tensor [1], which broadcasts to any shape."""
    return constant(ep, f"scalar_{value}", torch.tensor([float(value)]))


def constant(ep: ExportedProgram, name: str, value: torch.Tensor) -> Node:
    with ep.graph.inserting_before(next(iter(ep.graph.nodes))):
        return create_constant_placeholder(ep, ep.graph, name, InputKind.CONSTANT_TENSOR, value)
