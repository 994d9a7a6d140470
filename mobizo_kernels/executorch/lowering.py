"""The methods of a training program: traced, given to XNNPACK and to this package's ops, written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from executorch.exir import (
    EdgeCompileConfig,
    EdgeProgramManager,
    ExecutorchBackendConfig,
    to_edge_transform_and_lower,
)
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass
from torch.export import Dim, ExportedProgram

from mobizo_kernels.executorch.checksum import append_checksum
from mobizo_kernels.executorch.delegated import DelegatedEvaluate, DelegatedGraph, DelegatedTrainStep
from mobizo_kernels.executorch.description import Description
from mobizo_kernels.executorch.graph import TrainingGraph
from mobizo_kernels.executorch.partitioner import InferViewSizes, LevelPartitioner, SeparateConstants
from mobizo_kernels.executorch.quick_passes import few_collections, quick_passes
from mobizo_kernels.executorch.training_methods import (
    Evaluate,
    GetAdapter,
    Method,
    SetAdapter,
    TrainStep,
    Update,
    UpdateAndTrainStep,
)
from mobizo_kernels.executorch.writing import WRITING, NextLogits
from mobizo_kernels.files.file import written_whole

MIN_LENGTH = 3  # torch.export takes shorter sequences for special cases

_log = logging.getLogger(__name__)


@contextmanager
def usual_defaults() -> Iterator[None]:
    """float32 on the CPU as torch's defaults: a graph keeps what they were while it was traced."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with nullcontext() if device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


@few_collections()
def trace(graph: TrainingGraph, description: Description) -> dict[str, ExportedProgram]:
    """The methods by their names, for the sizes that the description gives."""
    time = _length_of(description) if description.dynamic_length else None
    train, evaluate = (_tokens(description, n) for n in (description.batch_size, description.evaluation_rows))
    train = (*train, torch.zeros_like(train[2]))
    if isinstance(graph, DelegatedGraph):
        methods = _stock_methods(graph, train, evaluate, time)
    else:
        methods = _methods(graph, description.queries, train, evaluate, time)
    methods |= _writing_method(graph, description)
    programs = {}
    for name, (method, arguments, shapes) in methods.items():
        _log.info("tracing %s", name)
        programs[name] = torch.export.export(method.eval(), arguments, dynamic_shapes=shapes, strict=False)
    return programs


# A method, an example of its arguments, and which of their sizes may vary.
Traced = tuple[Method, tuple[torch.Tensor, ...], Any]


def _methods(
    graph: TrainingGraph,
    queries: int,
    train: tuple[torch.Tensor, ...],
    evaluate: tuple[torch.Tensor, ...],
    time: dict[int, Any] | None,
) -> dict[str, Traced]:
    directions = (torch.arange(graph.groups), torch.zeros(graph.groups))
    update = (torch.arange(queries), torch.zeros(queries))
    rule = graph.rule
    numbers = tuple(torch.ones(1) for given in (rule.takes_rate, rule.weight_decay) if given)
    adapters = tuple(linear.lora_b.clone() for linear in graph.linears)
    head = graph.head_input()
    fixed = ((None,),) * len(head)  # the shape of what a method takes as *head
    return {
        "train_step": (
            UpdateAndTrainStep(graph) if rule.plain else TrainStep(graph),
            (*train, *directions, *(update if rule.plain else ()), *head),
            (time, time, *[None] * (6 if rule.plain else 4), *fixed),
        ),
        "evaluate": (Evaluate(graph), (*evaluate, *head), (time, time, None, *fixed)),
        "update": (Update(graph), (*update, *numbers), None),
        "get_adapter": (GetAdapter(graph), (), None),
        "set_adapter": (SetAdapter(graph), adapters, None),
    }


def _stock_methods(
    graph: DelegatedGraph,
    train: tuple[torch.Tensor, ...],
    evaluate: tuple[torch.Tensor, ...],
    time: dict[int, Any] | None,
) -> dict[str, Traced]:
    """Those of a program without our ops: whoever runs it has LoRA-B and updates it."""
    factors = [
        factor.clone() for factor in graph.inputs(torch.arange(graph.groups), torch.ones(graph.groups))
    ]
    lora_b = factors[: len(graph.linears)]
    head = graph.head_input()
    step_shapes = (time, time, None, None, (None,) * len([*factors, *head]))
    return {
        "train_step": (DelegatedTrainStep(graph), (*train, *factors, *head), step_shapes),
        "evaluate": (
            DelegatedEvaluate(graph),
            (*evaluate, *lora_b, *head),
            (time, time, None, (None,) * len([*lora_b, *head])),
        ),
        "get_adapter": (GetAdapter(graph), (), None),
    }


def _writing_method(graph: TrainingGraph, description: Description) -> dict[str, Traced]:
    """That of a program that writes."""
    if description.generation is None:
        return {}
    chunk, context = description.generation.chunk, description.generation.context
    # Examples away from the bounds, where torch.export would take a size for a fixed one.
    count, seen = chunk - 1, context - 1
    tokens = torch.ones(1, count, dtype=torch.int64), torch.arange(count)[None], torch.arange(seen)
    active = [] if graph.tail_length is None else [torch.ones(1, count, 1)]
    adapter = [lora_b.clone() for lora_b in graph.adapter_inputs()]
    time = {1: Dim("length", min=1, max=chunk)}
    shapes: list[Any] = [time, time, {0: Dim("seen", min=1, max=context)}]
    if rest := (*(time for _ in active), *(None for _ in adapter)):
        shapes.append(rest)
    return {WRITING: (NextLogits(graph), (*tokens, *active, *adapter), tuple(shapes))}


def _tokens(description: Description, rows: int) -> tuple[torch.Tensor, ...]:
    """An example of input_ids, attention_mask and target_positions of so many rows."""
    # One at a bound would be taken for a fixed length.
    length = description.max_length - 1 if description.dynamic_length else description.max_length
    ids = torch.ones(rows, length, dtype=torch.int64)
    return ids, torch.ones_like(ids), torch.zeros(rows, description.targets_per_row, dtype=torch.int64)


def _length_of(description: Description) -> dict[int, Any]:
    """The dynamic size of inputs [rows, T]: T itself, or T - n, for of T torch.export does not see T > n."""
    shortest, longest, tail = description.min_length, description.max_length, description.tail_length
    if tail is None:
        return {1: Dim("length", min=shortest, max=longest)}
    return {1: Dim("prefix", min=shortest - tail, max=longest - tail) + tail}


@quick_passes()
def lower(
    programs: dict[str, ExportedProgram], constant_methods: dict[str, Any], *, whole: bool = False
) -> EdgeProgramManager:
    """The methods with delegates where they hold the decoder: elsewhere one would take B for a constant.

    Args:
        programs: by their names.
        constant_methods: what others return.
        whole: nothing of ours cuts the decoder, and what is small beside it stays with ExecuTorch's ops.
    """
    _log.info("lowering")
    delegated = {"train_step", "evaluate", WRITING}
    partitioner = LevelPartitioner(whole=whole)
    return to_edge_transform_and_lower(
        programs,
        transform_passes=[SeparateConstants(), InferViewSizes()],
        partitioner={name: [partitioner] if name in delegated else [] for name in programs},
        constant_methods=constant_methods,
        compile_config=EdgeCompileConfig(_check_ir_validity=False),  # after each pass, all of the graph
    )


@quick_passes()
def write(lowered: EdgeProgramManager, path: Path, *, whole: bool = False, writes: bool = False) -> None:
    """Plan the memory, with LoRA-B at the same place in every method; write the .pte whole or not at all.

    LoRA-B and what the optimizer keeps of it begin with the values that they were traced with. In a program
    without such buffers, `whole`, inputs are read where the caller has them. One that `writes` has its
    key-value cache at the same place, and changes it in place.
    """
    config = ExecutorchBackendConfig(run_reinplace_pass=writes, emit_mutable_buffer_names=not whole or writes)
    if whole:
        plan = MemoryPlanningPass(alloc_graph_input=False, share_mutable_buffers=writes)
    else:
        plan = MemoryPlanningPass(share_mutable_buffers=True)
        config.passes = [InitializedMutableBufferPass(["lora_b", "momentum_buffer", "exp_avg"])]
    config.memory_planning_pass = plan
    program = lowered.to_executorch(config)
    with written_whole(path) as scratch:
        with scratch.open("wb") as file:
            program.write_to_file(file)
        append_checksum(scratch)
