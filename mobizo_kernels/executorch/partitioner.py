"""Partitioning for XNNPACK in time linear in the graph, and passes that let more of it be partitioned."""

from __future__ import annotations

from dataclasses import replace
from graphlib import TopologicalSorter

from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.utils.quant_utils import is_dequant
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.pass_base import (
    ExportedProgramPassBase,
    ExportedProgramPassResult,
    ExportPass,
    PassResult,
)
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.partitioner import Partition

from mobizo_kernels.executorch.quantization import WeightOnlyLinearConfig

_LINEAR = exir_ops.edge.aten.linear.default
_VIEW = exir_ops.edge.aten.view_copy.default
_RESHAPING = {
    exir_ops.edge.aten.unsqueeze_copy.default,
    exir_ops.edge.aten.squeeze_copy.dims,
    exir_ops.edge.aten.squeeze_copy.dim,
}


class InferViewSizes(ExportPass):
    """Write the one dynamic size of a view as -1, squeezes and unsqueezes as views: what XNNPACK takes."""

    def call(self, graph_module: GraphModule) -> PassResult:
        for node in graph_module.graph.nodes:
            if node.op != "call_function" or node.target not in _RESHAPING | {_VIEW}:
                continue
            sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
            if sizes.count(-1) <= 1:
                node.target, node.args, node.kwargs = _VIEW, (node.args[0], sizes), {}
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
        return PassResult(graph_module, True)


class SeparateConstants(ExportedProgramPassBase):
    """Give a weight with several users of which each packs it to each as an input of its own.

    So the users may be in different delegates. No data is copied: all inputs are the same tensor, which a
    program holds once, and packed once where its delegates share packed weights. Lifted tensors are left out:
    torch.export takes each once only.
    """

    def call(self, exported_program: ExportedProgram) -> ExportedProgramPassResult:
        """The program, changed in place."""
        graph, signature = exported_program.graph, exported_program.graph_signature
        constants = set(_constants(exported_program))
        specs, count = [], len(signature.input_specs)
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, signature.input_specs, strict=True):
            users = list(node.users)
            weight = node in constants and spec.kind != InputKind.CONSTANT_TENSOR
            if weight and all(_packs(user) for user in users):
                for number, user in enumerate(users[1:]):
                    with graph.inserting_before(node):
                        other = graph.placeholder(f"{node.name}_for_user_{number + 1}")
                    other.meta = dict(node.meta)
                    user.replace_input_with(node, other)
                    specs.append(replace(spec, arg=TensorArgument(other.name)))
            specs.append(spec)
        signature.input_specs = specs
        exported_program.graph_module.recompile()
        return ExportedProgramPassResult(exported_program, len(specs) > count)


class LevelPartitioner(XnnpackPartitioner):
    """XNNPACK's partitioner with linears of quantised weights alone, and with another way of joining nodes.

    A node's level is the most often that a path to it comes back to XNNPACK from an op that is not XNNPACK's.
    No such path runs between nodes of one level, so they form one partition without a cycle. ExecuTorch's own
    way asks of every pair of partitions whether they may be joined.

    Args:
        whole: a node belongs to the last level that it can, where what it is made for is, and a level without
            a linear is left out: what is small beside the decoder makes no delegate.
    """

    def __init__(self, *, whole: bool = False) -> None:
        configs = [WeightOnlyLinearConfig if c is LinearConfig else c for c in ALL_PARTITIONER_CONFIGS]
        super().__init__(configs)
        self.whole = whole

    def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[list[OpOverload], None]:
        """Without a filter by node: with one, ExecuTorch decomposes each graph a second time, a sixth of the
        export's time, to take apart the nodes that fail it.
        """
        kept, _ = super().ops_to_not_decompose(ep)
        return kept, None

    def generate_partitions(self, ep: ExportedProgram) -> list[Partition]:
        """One partition for each level."""
        owner: dict[Node, int] = {}  # the first group of a node that belongs together; others join it
        groups: list[set[Node]] = []
        for match in self.get_matched_nodes_from_configs(ep):
            nodes = {node for node in match if node.op == "call_function"}
            joined = {owner[node] for node in nodes if node in owner}
            for group in joined:
                nodes |= groups[group]
                groups[group] = set()
            groups.append(nodes)
            owner.update(dict.fromkeys(nodes, len(groups) - 1))

        def unit(node: Node) -> Node | int:
            return owner.get(node, node)

        inputs: dict[Node | int, set[Node | int]] = {}
        for node in ep.graph.nodes:
            before = inputs.setdefault(unit(node), set())
            before |= {unit(source) for source in node.all_input_nodes} - {unit(node)}
        levels: dict[Node | int, int] = {}
        for item in TopologicalSorter(inputs).static_order():
            mine = isinstance(item, int)
            leaving = [levels[source] + (mine and _computes(source)) for source in inputs[item]]
            levels[item] = max(leaving, default=0)
        if self.whole:
            _sink(levels, inputs)

        partitions: dict[int, Partition] = {}
        for node, group in owner.items():
            level = levels[group]
            partitions.setdefault(level, Partition(id=level, nodes=[])).add_node(node)
        for node in _constants(ep):
            homes = {levels[owner[user]] for user in node.users if user in owner and _packs(user)}
            if len(homes) == 1 and all(user in owner and _packs(user) for user in node.users):
                partitions[homes.pop()].add_node(node)
        found = list(partitions.values())
        return [p for p in found if any(n.target == _LINEAR for n in p.nodes)] if self.whole else found


def _sink(levels: dict[Node | int, int], inputs: dict[Node | int, set[Node | int]]) -> None:
    """Raise each level, in place, as far as the items that need the item's value allow.

    Args:
        levels: of all items, in an order in which each comes after its inputs.
        inputs: of each item.
    """
    latest = dict.fromkeys(levels, max(levels.values()))
    for item in reversed(levels):
        for source in inputs[item]:
            back = isinstance(item, int) and _computes(source)
            latest[source] = min(latest[source], latest[item] - back)
    levels.update(latest)


def _computes(item: Node | int) -> bool:
    return isinstance(item, Node) and item.op == "call_function"


def _packs(node: Node) -> bool:
    """Whether XNNPACK copies a constant operand into the order that its kernel reads. To any other it keeps a
    pointer, even once its cache of packed weights has given the memory back: those stay outside.
    """
    return node.target == _LINEAR or is_dequant(node)


def _constants(ep: ExportedProgram) -> list[Node]:
    """Placeholders of parameters, buffers that no method changes, and lifted tensors."""
    signature = ep.graph_signature
    changed = set(signature.buffers_to_mutate.values())
    names = {
        **signature.inputs_to_parameters,
        **{k: v for k, v in signature.inputs_to_buffers.items() if v not in changed},
        **signature.inputs_to_lifted_tensor_constants,
    }
    return [node for node in ep.graph.nodes if node.op == "placeholder" and node.name in names]
