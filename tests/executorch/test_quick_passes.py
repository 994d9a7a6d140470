"""ExecuTorch's passes with what changes nothing left out: the same program, to the byte."""

from __future__ import annotations

import copy
import gc
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.dialects._ops import ops
from executorch.exir.lowered_backend_module import LoweredBackendModule
from executorch.exir.pass_base import ExportPass, PassResult
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.export import Dim, export
from torch.fx import Graph, GraphModule, Interpreter, traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.utils.matcher_utils import SubgraphMatcher

from mobizo_kernels.executorch.quick_passes import quick_passes
from mobizo_kernels.executorch.unchanged import calls_each_as_it_is


class Rewritten(nn.Module):
    """What XNNPACK's passes rewrite: an activation behind a linear, a long cat, copies, a norm of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(6, 6) for _ in range(7))
        self.conv = nn.Conv1d(6, 4, 3)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.relu(linear(x)) for linear in self.linears]
        joined = torch.cat(parts, dim=1).clone()
        return torch.softmax(self.norm(self.conv(joined.transpose(1, 2).contiguous())), dim=-1).exp()


def program() -> Any:
    torch.manual_seed(3)
    model = Rewritten().eval()
    return export(model, (torch.randn(2, 5, 6),), dynamic_shapes=({0: Dim("rows", min=2, max=8)},))


def test_the_same_bytes() -> None:
    contents = []
    for quick in (False, True):
        with quick_passes() if quick else nullcontext():
            lowered = to_edge_transform_and_lower(program(), partitioner=[XnnpackPartitioner()])
            contents.append(lowered.to_executorch().buffer)
    assert contents[0] == contents[1]


def test_no_delegate_is_run_for_its_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(module: LoweredBackendModule) -> Any:
        raise AssertionError("a pass runs a delegate")

    with quick_passes():
        lowered = to_edge_transform_and_lower(program(), partitioner=[XnnpackPartitioner()])
        monkeypatch.setattr(LoweredBackendModule, "original_module", property(run))
        ExportPass()(lowered.exported_program().graph_module)
    with pytest.raises(AssertionError, match="a pass runs a delegate"):
        ExportPass()(lowered.exported_program().graph_module)


class Negating(ExportPass):
    """Puts one op in the place of another while it traces."""

    def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        op = ops.edge.aten.neg.default if op == ops.edge.aten.relu.default else op
        return super().call_operator(op, args, kwargs, meta)


def traces(*passes: ExportPass) -> tuple[GraphModule, int]:
    """The graph behind the passes, and how many of them traced it."""
    count = 0

    def inputs(self: ExportPass, graph_module: GraphModule) -> Any:
        nonlocal count
        count += 1
        return plain(self, graph_module)

    plain = ExportPass.inputs
    graph = to_edge_transform_and_lower(program()).exported_program().graph_module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExportPass, "inputs", inputs)
        for made in passes:
            graph = made(graph).graph_module
    return graph, count


class Widening(ExportPass):
    """Puts another width in the place of that of the first relu, and of all that follows."""

    def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        made = super().call_operator(op, args, kwargs, meta)
        if op == ops.edge.aten.relu.default:
            made = super().call_operator(ops.edge.aten.cat.default, ([made, made],), {}, meta)
        return made


class Stepwise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x.abs()).exp().neg()


def computed(made: ExportPass, graph: GraphModule) -> tuple[GraphModule, list[str]]:
    """The graph behind a pass, and the ops whose values were computed."""
    ran: list[str] = []

    def dispatch(self: FakeTensorMode, func: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(func._schema.name.split("::")[1])
        return plain(self, func, *args, **kwargs)

    plain = FakeTensorMode.dispatch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeTensorMode, "dispatch", dispatch)
        behind = made(graph).graph_module
    return behind, ran


def shapes(graph: GraphModule) -> list[tuple[int, ...]]:
    return [tuple(node.meta["val"].shape) for node in graph.graph.nodes if node.op == "call_function"]


def test_a_value_is_computed_where_a_pass_has_changed_what_it_is_made_of() -> None:
    with quick_passes():
        graph = (
            to_edge_transform_and_lower(export(Stepwise(), (torch.randn(3),))).exported_program().graph_module
        )
        graph, ran = computed(Negating(), graph)
        assert ran == ["neg"] and shapes(graph) == [(3,)] * 4
        graph = (
            to_edge_transform_and_lower(export(Stepwise(), (torch.randn(3),))).exported_program().graph_module
        )
        graph, ran = computed(Widening(), graph)
        assert ran == ["cat", "exp", "neg"] and shapes(graph) == [(3,), (3,), (6,), (6,), (6,)]


def test_what_is_written_down_is_computed() -> None:
    graph = export(Stepwise(), (torch.randn(3),)).run_decompositions({}).graph_module
    with quick_passes():
        ExportPass()(graph)
        again = make_fx(lambda x: Interpreter(graph).run(x), tracing_mode="fake")(torch.randn(3))
    called = [[node.target for node in made.graph.nodes][1:] for made in (again, graph)]
    assert called[0] == called[1]


class Rewriting(ExportPass):
    """Rewrites the first relu before it traces, if there is one."""

    def call(self, graph_module: GraphModule) -> PassResult:
        for node in graph_module.graph.nodes:
            if node.target == ops.edge.aten.relu.default:
                node.target = ops.edge.aten.neg.default
                break
        return super().call(graph_module)


def negations(graph: GraphModule) -> int:
    return sum(node.target == ops.edge.aten.neg.default for node in graph.graph.nodes)


def test_a_graph_is_traced_again_where_a_pass_has_changed_it() -> None:
    with quick_passes():  # the graph comes out of a trace
        graph, count = traces(ExportPass(), ExportPass(), Rewriting(), ExportPass(), Rewriting())
        assert (negations(graph), count) == (2, 2)
        graph, count = traces(ExportPass(), Negating(), ExportPass(), Negating(), Rewriting())
        assert (negations(graph), count) == (7, 1)
    assert traces(ExportPass(), ExportPass())[1] == 2


class Altered(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + 1).clone()


class Wrapping(ExportPass):
    """Puts a tensor in the place of an equal number."""

    def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        return super().call_operator(op, tuple(torch.tensor(x) if x == 1 else x for x in args), kwargs, meta)


class Dropping(ExportPass):
    """Leaves out an op."""

    def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        if op == torch.ops.aten.relu.default:
            return args[0]
        return super().call_operator(op, args, kwargs, meta)


class Doubling(ExportPass):
    """Calls an op twice."""

    def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        if op == torch.ops.aten.relu.default:
            args = (super().call_operator(op, args, kwargs, meta),)
        return super().call_operator(op, args, kwargs, meta)


class Remembering(ExportPass):
    """Lets only the first call of an op be."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        assert op not in self.seen
        self.seen.add(op)
        return super().call_operator(op, args, kwargs, meta)


class Refusing(ExportPass):
    """Can make nothing of an op."""

    def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("made", "unchanged"),
    [
        (ExportPass(), True),
        (Negating(), True),  # there is no relu of the edge dialect
        (Remembering(), True),
        (Wrapping(), False),
        (Dropping(), False),
        (Doubling(), False),
        (Refusing(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_pass_would_change(made: ExportPass, unchanged: bool) -> None:
    graph = export(Altered(), (torch.randn(3),)).run_decompositions({}).graph_module
    for _ in range(2):  # the pass itself has seen nothing
        assert calls_each_as_it_is(made, graph) == unchanged


def test_patterns_are_found_where_their_ops_are() -> None:
    graph = export(Altered(), (torch.randn(3),)).run_decompositions({}).graph_module.graph
    relu, neg = Graph(), Graph()
    for pattern, op in ((relu, torch.ops.aten.relu.default), (neg, torch.ops.aten.neg.default)):
        pattern.output(pattern.call_function(op, (pattern.placeholder("x"),)))
    with quick_passes():
        assert len(SubgraphMatcher(relu).match(graph)) == 1
        assert SubgraphMatcher(neg).match(graph) == []
        assert len(SubgraphMatcher(neg).match(graph, node_name_match="relu")) == 1


def test_a_module_that_is_called_does_what_its_graph_says() -> None:
    x = torch.tensor([-2.0, 1.0])
    with quick_passes():
        module = export(Altered(), (x,)).module()
        assert isinstance(module, GraphModule)
        for node in module.graph.nodes:
            if node.target == torch.ops.aten.relu.default:
                node.target = torch.ops.aten.neg.default
        module.recompile()
        assert module(x).tolist() == [1.0, -2.0]
        assert copy.deepcopy(module)(x).tolist() == [1.0, -2.0]
        module.recompile()
    assert module(x).tolist() == [1.0, -2.0]


def test_nothing_is_left_behind() -> None:
    call, module, thresholds = ExportPass.call, traceback.copy, gc.get_threshold()
    with pytest.raises(RuntimeError, match="stop"), quick_passes():
        assert ExportPass.call is not call
        raise RuntimeError("stop")
    assert ExportPass.call is call and traceback.copy is module and gc.get_threshold() == thresholds
