"""ExecuTorch's passes over a graph with the same outcome in less time.

- Most passes look for a pattern, rewrite what they find, and trace the graph again, node by node, also where
  they have found nothing. XNNPACK has 17 of them for every delegate. A graph that has just come out of a
  trace is not traced again by a pass that would call each node as it is.
- A pass that traces a graph computes the shape of every value in it. Those of what it does not change are
  known from the last trace, those of what a delegate returns since that was made.
- Some passes look for a pattern at every node, also where an op of it is nowhere in the graph.
- Each method is decomposed by two traces: into functional ops, then into those that a backend takes. The
  second does both.
- torch.fx writes Python for every graph that a pass returns. Here it writes that which is called.
- torch.fx tells of each node from which other it was made, by a copy of all that this one knew of its own
  origin. That grows with every pass. Here nodes share it.
- Python's collector looks through all that lives, again and again while it grows. Here that waits.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from executorch.exir.pass_base import ExportPass, NodeMetadata, PassResult, ProxyValue
from executorch.exir.program import _program
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, traceback
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.passes.utils.matcher_utils import InternalMatch, SubgraphMatcher

from mobizo_kernels.executorch.known_values import KnownValues
from mobizo_kernels.executorch.unchanged import calls_each_as_it_is


@contextmanager
def few_collections() -> Iterator[None]:
    """While it lasts, Python hardly looks for cycles among objects that have lived for long."""
    thresholds = gc.get_threshold()
    gc.set_threshold(*thresholds[:2], 1000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@contextmanager
def quick_passes() -> Iterator[None]:
    """While it lasts, passes leave out what changes nothing in the program."""
    trace, decompose = ExportPass.call, ExportedProgram.run_decompositions
    enter_delegate, find = ExportPass.call_delegate, SubgraphMatcher.match
    traced: WeakKeyDictionary[Graph, list[Any]] = WeakKeyDictionary()
    known = KnownValues()

    def call(self: ExportPass, graph_module: GraphModule) -> PassResult:
        fresh = traced.get(graph_module.graph) == _content(graph_module.graph)
        if fresh and calls_each_as_it_is(self, graph_module):
            return PassResult(graph_module, True)
        result = trace(self, graph_module)
        traced[result.graph_module.graph] = _content(result.graph_module.graph)
        return result

    def call_delegate(
        self: ExportPass, lowered_module: Any, args: Any, kwargs: Any, meta: NodeMetadata
    ) -> ProxyValue:
        known = tuple(value.detach() if isinstance(value, Tensor) else value for value in meta.data["val"])
        with patch.object(self.interpreter, "call_function", lambda *_: known):
            return enter_delegate(self, lowered_module, args, kwargs, meta)

    def run_decompositions(
        self: ExportedProgram, decomp_table: dict[Any, Any] | None = None, **options: Any
    ) -> ExportedProgram:
        # With an empty table it makes ops functional, as it does with any other, which follows. The default
        # one is a dict that fills itself.
        if type(decomp_table) is dict and not decomp_table:
            return self
        decomposed = decompose(self, decomp_table, **options)
        known.learn(decomposed.graph)
        return decomposed

    def match(self: SubgraphMatcher, graph: Graph, node_name_match: str = "") -> list[InternalMatch]:
        # A name stands for any op.
        hopeless = not node_name_match and _called(self.pattern) - _called(graph)
        return [] if hopeless else find(self, graph, node_name_match)

    with ExitStack() as patches:
        for owner, name, value in (
            (ExportPass, "call", call),
            (ExportPass, "call_delegate", call_delegate),
            (ExportedProgram, "run_decompositions", run_decompositions),
            (_program, "contains_any_call_fn_target_op", lambda *_: True),  # whether the other has to follow
            (SubgraphMatcher, "match", match),
            (GraphModule, "recompile", _recompile_when_called),
            (traceback, "copy", _Shared),
        ):
            patches.enter_context(patch.object(owner, name, value))
        patches.enter_context(known.used())
        patches.enter_context(few_collections())
        yield


class _Shared:
    """Stands for the module `copy` where torch.fx writes down the origin of a node."""

    copy = staticmethod(copy.copy)

    @staticmethod
    def deepcopy(origin: list[Any]) -> list[Any]:
        return list(origin)


_recompile = GraphModule.recompile


def _recompile_when_called(self: GraphModule) -> Any:
    """`GraphModule.recompile`, put off until the module is called."""
    kind = type(self)  # torch.fx makes one for each module
    if kind.__bases__ != (GraphModule,):
        return _recompile(self)

    def forward(self: GraphModule, *args: Any, **kwargs: Any) -> Any:
        _recompile(self)
        return self(*args, **kwargs)

    if isinstance(codegen := self.graph._codegen, _PyTreeCodeGen):
        self._in_spec, self._out_spec = codegen.pytree_info.in_spec, codegen.pytree_info.out_spec
    self._code = "# is written when the module is called"
    kind.forward = forward  # type: ignore[method-assign]
    return None


def _called(graph: Graph) -> set[Any]:
    """The ops that a graph calls."""
    return {node.target for node in graph.nodes if node.op == "call_function"}


def _content(graph: Graph) -> list[Any]:
    """The nodes and what they do: equal for the same nodes alone."""
    return [(node, node.op, node.target, node.args, node.kwargs) for node in graph.nodes]
