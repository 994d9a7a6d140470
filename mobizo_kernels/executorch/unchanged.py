"""Whether a pass of ExecuTorch's would leave a graph as it is, found without tracing it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from executorch.exir.pass_base import ExportPass, ProxyValue
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

# Where a pass may put something else in the place of what it traces.
_HOOKS = (
    "placeholder", "call_operator", "call_sym", "call_cond", "call_while", "call_map", "call_scan",
    "call_getitem", "call_delegate", "output", "call_submodule", "inputs", "on_attr", "ExportTracer",
    "ExportInterpreter",
)  # fmt: skip


def calls_each_as_it_is(made: ExportPass, graph_module: GraphModule) -> bool:
    """Whether `made`, tracing a graph, would call every node's op with the node's own arguments.

    A pass that replaces ops as it traces is asked about each node in turn. What it would call is then
    compared with the node and not computed. One that does more than replace ops is taken to change the graph.
    """
    hooks = {hook for hook in _HOOKS if getattr(type(made), hook) is not getattr(ExportPass, hook)}
    return not hooks or (hooks == {"call_operator"} and _Rehearsal(made, graph_module).changes_nothing())


class _Changed(Exception):
    """The pass calls something else than the node, or nothing."""


class _Rehearsal:
    """A copy of a pass that goes through a graph, its calls compared with the nodes."""

    def __init__(self, made: ExportPass, graph_module: GraphModule) -> None:
        self._module = graph_module
        self._nodes: dict[int, Node] = {}  # of what is no node's value, as a delegate is
        self._node: Node | None = None  # whose call is awaited
        self._values: dict[Node, Any] = {}
        self._made = copy.copy(made)  # which may remember what it has seen
        for name, value in vars(made).items():
            if isinstance(value, (dict, list, set)):
                setattr(self._made, name, copy.copy(value))
        self._made._fx = self._called  # type: ignore[method-assign]
        self._interpreter = made.ExportInterpreter(self._made, graph_module)

    def changes_nothing(self) -> bool:
        try:
            for node in self._module.graph.nodes:
                self._visit(node)
        except Exception:  # whatever a pass makes of a value that only stands for one
            return False
        return True

    def _visit(self, node: Node) -> None:
        if node.op == "placeholder":
            self._values[node] = ProxyValue(node.meta["val"], node)
        elif node.op == "get_attr":
            value = self._interpreter.fetch_attr(str(node.target))
            self._nodes[id(value)] = node
            self._values[node] = value
        elif node.op == "call_function":
            self._interpreter.node = self._node = node
            args, kwargs = (map_arg(given, self._values.__getitem__) for given in (node.args, node.kwargs))
            made = self._interpreter.call_function(node.target, args, kwargs)
            if self._node is not None or not isinstance(made, ProxyValue) or made.node is not node:
                raise _Changed
            self._values[node] = made
        elif node.op != "output":
            raise _Changed

    def _called(self, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> ProxyValue:
        """What `ExportPass._fx` is asked for: what a node does, and nothing else."""
        node, self._node = self._node, None
        if node is None or kind != node.op or target is not node.target:
            raise _Changed
        if not self._same((tuple(args), dict(kwargs)), (node.args, node.kwargs)):
            raise _Changed
        return ProxyValue(node.meta["val"], node)

    def _same(self, given: Any, own: Any) -> bool:
        """Whether arguments of a call, which are values, are a node's own, which has nodes in their place."""
        if isinstance(own, Node):
            return (given.node if isinstance(given, ProxyValue) else self._nodes.get(id(given))) is own
        if isinstance(own, (tuple, list)):
            alike = isinstance(given, (tuple, list)) and len(given) == len(own)
            return alike and all(map(self._same, given, own))
        if isinstance(own, dict):
            alike = isinstance(given, dict) and given.keys() == own.keys()
            return alike and all(self._same(given[name], own[name]) for name in own)
        return given is own or (
            type(given) is type(own) and not isinstance(own, torch.Tensor) and given == own
        )
