"""Programs of ExecuTorch that hold single ops, and damaged ones that ask an op for what it must refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from executorch.exir import ExecutorchBackendConfig, to_edge
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass
from executorch.exir.schema import KernelCall, ScalarType
from executorch.runtime import Method, Program, Runtime, Verification
from torch import nn

from mobizo_kernels.executorch._library import load_ops

INVALID_ARGUMENT = 0x12


class Buffers(nn.Module):
    """What the methods of a program share."""

    def __init__(self, buffers: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value.clone())


class OneCall(nn.Module):
    """A function of the shared buffers and of its arguments, as a module that can be exported."""

    def __init__(self, function: Callable[..., torch.Tensor], buffers: Buffers) -> None:
        super().__init__()
        self.function, self.buffers_ = function, buffers

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        return self.function(self.buffers_, *arguments)


class MethodSpec(NamedTuple):
    """A method to be: what it computes, example arguments, and their dynamic sizes."""

    function: Callable[..., torch.Tensor]
    arguments: tuple[torch.Tensor, ...] = ()
    shapes: tuple[Any, ...] | None = None


def lower(methods: Mapping[str, MethodSpec], buffers: Mapping[str, torch.Tensor] | None = None) -> bytes:
    """A program of methods over buffers that they may change; the buffers' values go into the program."""
    shared = Buffers(buffers or {})
    with warnings.catch_warnings():  # of the libraries below
        warnings.simplefilter("ignore")
        programs = {
            name: torch.export.export(
                OneCall(spec.function, shared),
                spec.arguments,
                dynamic_shapes=None if spec.shapes is None else (spec.shapes,),
                strict=False,
            )
            for name, spec in methods.items()
        }
        config = ExecutorchBackendConfig(
            passes=[InitializedMutableBufferPass(["buffers_"])],
            memory_planning_pass=MemoryPlanningPass(share_mutable_buffers=True),
            emit_mutable_buffer_names=True,
        )
        return bytes(to_edge(programs).to_executorch(config).buffer)


def load(program: bytes) -> Program:
    """A program with every method loaded, which has to come before the first call."""
    load_ops()
    loaded = Runtime.get().load_program(program, verification=Verification.Minimal)
    for name in loaded.method_names:
        loaded.load_method(name)
    return loaded


def call(
    method: Method | None, arguments: Sequence[torch.Tensor], poison: float = float("nan")
) -> torch.Tensor:
    """The one output of a method, whose memory holds nothing but `poison` before."""
    assert method is not None
    inner = method._method
    inner.set_inputs(tuple(arguments))
    inner.get_outputs(clone_outputs=False)[0].fill_(poison)
    inner.execute()
    return inner.get_outputs(clone_outputs=True)[0]


def damaged(
    program: bytes, method: str, changes: Mapping[int, Mapping[str, Any] | int | None]
) -> tuple[bytes, list[Any]]:
    """A program in which the one kernel of a method is given something else, and inputs of its new types.

    Args:
        program: that :func:`lower` made.
        method: its name.
        changes: for arguments of the kernel, numbered as in its schema, new fields of their values; or the
            number of the argument whose value they take instead; or None, and they and all after are gone.
            The field "memory_of" is the number of another argument, in whose memory the value shall lie.
    """
    file = deserialize_pte_binary(program)
    plan = next(plan for plan in file.program.execution_plan if plan.name == method)
    (instruction,) = plan.chains[0].instructions
    assert isinstance(instruction.instr_args, KernelCall)
    values = list(instruction.instr_args.args)
    for argument, fields in changes.items():
        if fields is None:
            del instruction.instr_args.args[argument:]
            continue
        if isinstance(fields, int):
            instruction.instr_args.args[argument] = values[fields]
            continue
        value = plan.values[values[argument]].val
        for name, field in fields.items():
            if name == "memory_of":
                other = plan.values[values[field]].val
                name, field = "allocation_info", other.allocation_info
            setattr(value, name, field)
        if "sizes" in fields:
            value.dim_order = list(range(len(fields["sizes"])))
    inputs = [_ones(plan.values[index].val) for index in plan.inputs]
    return bytes(serialize_pte_binary(file)), inputs


def _ones(tensor: Any) -> torch.Tensor:
    """A tensor of the type and the sizes that a program wants."""
    dtypes = {
        ScalarType.INT: torch.int32,
        ScalarType.LONG: torch.int64,
        ScalarType.HALF: torch.float16,
        ScalarType.FLOAT: torch.float32,
    }
    return torch.ones(tensor.sizes, dtype=dtypes[tensor.scalar_type])


def assert_refused(
    method: Method | None, arguments: Sequence[torch.Tensor], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel says so in the log and leaves its output alone; the method gives its error, no crash."""
    assert method is not None
    inner = method._method
    inner.set_inputs(tuple(arguments))
    out = inner.get_outputs(clone_outputs=False)[0]
    out.fill_(7)
    capfd.readouterr()
    with pytest.raises(RuntimeError, match=f"0x{INVALID_ARGUMENT:x}"):
        inner.execute()
    log = capfd.readouterr().err
    assert message in log
    assert bool((out == 7).all())
