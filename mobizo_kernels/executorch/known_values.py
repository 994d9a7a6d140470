"""What an op gives for values that it was given before, while passes trace a graph again and again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from executorch.exir.dialects.edge._ops import EdgeOpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Interpreter, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class KnownValues:
    """Of ops of fake tensors, by the op and the very objects that it is given.

    A pass that traces a graph computes each node's value from its inputs' shapes, though most passes change
    few nodes. Values stay the same objects from pass to pass, so that one look finds what is known of them.
    """

    def __init__(self) -> None:
        # With what an id is of, for an id is another object's when its own is gone.
        self._values: dict[Any, tuple[Any, Any]] = {}
        self._node: Node | None = None

    def learn(self, graph: Graph) -> None:
        """Take the values of nodes from a graph in which each has its own."""
        for node in graph.nodes:
            if node.op == "call_function" and "val" in node.meta:
                args, kwargs = map_arg((node.args, node.kwargs), lambda given: given.meta.get("val", given))
                if key := _key(node.target, args, kwargs):
                    self._values[key] = ((args, kwargs), node.meta["val"])

    @contextmanager
    def used(self) -> Iterator[None]:
        """While it lasts, interpreters of graphs look before they compute."""
        compute, run = Interpreter.call_function, Interpreter.run_node

        def call_function(interpreter: Interpreter, target: Any, args: Any, kwargs: Any) -> Any:
            # Whoever writes down what is computed has to see it.
            key = _key(target, args, kwargs) if get_proxy_mode() is None else None
            if key is None:
                return compute(interpreter, target, args, kwargs)
            if key not in self._values:
                value = self._as_before(compute(interpreter, target, args, kwargs))
                self._values[key] = ((args, kwargs), value)
            return self._values[key][1]

        def run_node(interpreter: Interpreter, node: Node) -> Any:
            self._node = node
            return run(interpreter, node)

        with (
            patch.object(Interpreter, "call_function", call_function),
            patch.object(Interpreter, "run_node", run_node),
        ):
            yield

    def _as_before(self, value: Any) -> Any:
        """The value that the node had, if it tells the same: what follows then is known as well."""
        before = None if self._node is None else self._node.meta.get("val")
        return before if _alike(value, before) else value


def _key(target: Any, args: Any, kwargs: Any) -> Any:
    """What an op and its arguments are known by; None if its value may differ between two calls."""
    op = target._op if isinstance(target, EdgeOpOverload) else target
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable:
        return None
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    key: list[Any] = [op, spec]
    fake = False
    for leaf in leaves:
        if type(leaf) in (FakeTensor, torch.Tensor, torch.nn.Parameter):
            fake = fake or type(leaf) is FakeTensor
            key.append((id, id(leaf)))
        elif isinstance(leaf, _SYMBOLIC):
            key.append((id(leaf.node.shape_env), leaf.node.expr))
        elif isinstance(leaf, _PLAIN):
            key.append((type(leaf), repr(leaf)))  # NaN and the sign of zero
        else:
            return None
    return tuple(key) if fake else None


def _alike(value: Any, before: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return type(value) is type(before) and len(value) == len(before) and all(map(_alike, value, before))
    if not (isinstance(value, FakeTensor) and isinstance(before, FakeTensor)):
        return False
    return _told(value) == _told(before)


def _told(value: FakeTensor) -> Any:
    """What a graph knows of a tensor."""
    sizes = [str(size) for size in (*value.shape, *value.stride(), value.storage_offset())]
    own = value.dtype, value.device, value.layout, value.requires_grad
    return own, sizes, id(value.fake_mode), id(value.constant)
