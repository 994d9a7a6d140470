"""ExecuTorch's passes over a graph with the same outcome in less time: six tenths of an export.

- Most passes look for a pattern, rewrite what they find, and trace the graph again, node by node, also where
  they have found nothing. XNNPACK has 17 of them for every delegate. A graph that has just come out of a
  trace is not traced again.
- torch.fx tells of each node from which other it was made, by a copy of all that this one knew of its own
  origin. That grows with every pass. Here nodes share it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from executorch.exir.pass_base import ExportPass, PassResult
from torch.fx import Graph, GraphModule, traceback

# Where a pass may put something else in the place of what it traces.
_HOOKS = (
    "placeholder", "call_operator", "call_sym", "call_cond", "call_while", "call_map", "call_scan",
    "call_getitem", "call_delegate", "output", "call_submodule", "inputs", "on_attr", "ExportTracer",
    "ExportInterpreter",
)  # fmt: skip


@contextmanager
def quick_passes() -> Iterator[None]:
    """While it lasts, passes leave out what changes nothing in the program."""
    trace = ExportPass.call
    traced: WeakKeyDictionary[Graph, list[Any]] = WeakKeyDictionary()

    def call(self: ExportPass, graph_module: GraphModule) -> PassResult:
        if _only_traces(type(self)) and traced.get(graph_module.graph) == _content(graph_module.graph):
            return PassResult(graph_module, True)
        result = trace(self, graph_module)
        traced[result.graph_module.graph] = _content(result.graph_module.graph)
        return result

    with patch.object(ExportPass, "call", call), patch.object(traceback, "copy", _Shared):
        yield


class _Shared:
    """Stands for the module `copy` where torch.fx writes down the origin of a node."""

    copy = staticmethod(copy.copy)

    @staticmethod
    def deepcopy(origin: list[Any]) -> list[Any]:
        return list(origin)


def _only_traces(kind: type[ExportPass]) -> bool:
    return all(getattr(kind, hook) is getattr(ExportPass, hook) for hook in _HOOKS)


def _content(graph: Graph) -> list[Any]:
    """The nodes and what they do: equal for the same nodes alone."""
    return [(node, node.op, node.target, node.args, node.kwargs) for node in graph.nodes]
