"""Which operators of a delegated step other backends of the installed ExecuTorch leave outside.

    python -m benchmarks.executorch.backends

A Llama of two layers with adapters on q_proj and v_proj: `train_step` is traced at a fixed length and shown
to the partitioner of each backend, which says what it would take. Nothing is compiled and nothing runs. A
backend whose partitioner cannot be imported from the wheel has its error in the table. QNN's is not asked: on
its import the wheel downloads Qualcomm's SDK.

Columns: operators that it takes, groups that they form (XNNPACK's is one), and how often each other operator
is left outside. Those that only move or make small tensors before and after the decoder cost little; one in
the middle cuts it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import peft
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.backend.partitioner import Partitioner, PartitionResult
from torch.export import ExportedProgram

import mobizo_kernels as mobizo
from benchmarks.executorch.programs import CANDIDATES, RANK, TARGETS, batch, load
from mobizo_kernels.executorch.delegated import DelegatedGraph, DelegatedTrainStep
from mobizo_kernels.executorch.partitioner import InferViewSizes, LevelPartitioner, SeparateConstants
from mobizo_kernels.executorch.rotation import product_rotation
from mobizo_kernels.executorch.xnnpack_rewrites import GroupedAttention, replace_norms
from mobizo_kernels.optim import UpdateRule

GROUPS, LENGTH = 4, 16


def coreml() -> Partitioner:
    module = import_module("executorch.backends.apple.coreml.partition")
    return module.CoreMLPartitioner()  # type: ignore[no-any-return]


def vulkan() -> Partitioner:
    module = import_module("executorch.backends.vulkan.partitioner.vulkan_partitioner")
    return module.VulkanPartitioner()  # type: ignore[no-any-return]


BACKENDS: dict[str, Callable[[], Partitioner]] = {
    "XNNPACK": lambda: LevelPartitioner(whole=True),
    "Vulkan": vulkan,
    "Core ML": coreml,
}


class Asked(Partitioner):
    """Asks another partitioner what it would take, and has nothing taken.

    Attributes:
        taken: by the partitions' names, how many operators each has.
        outside: how often each other operator is there.
    """

    def __init__(self, asked: Partitioner) -> None:
        super().__init__()
        self.asked = asked
        self.taken: Counter[str] = Counter()
        self.outside: Counter[str] = Counter()

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """No partitions."""
        tagged = self.asked.partition(exported_program).tagged_exported_program
        for node in tagged.graph.nodes:
            tag = node.meta.pop("delegation_tag", None)
            if node.op != "call_function" or "getitem" in str(node.target):
                continue
            if tag is None:
                self.outside[node.target.__name__.removeprefix("aten.").rpartition(".")[0]] += 1
            else:
                self.taken[tag] += 1
        return PartitionResult(tagged_exported_program=exported_program, partition_tags={})

    def ops_to_not_decompose(self, ep: ExportedProgram) -> Any:
        """Those of the other one."""
        return self.asked.ops_to_not_decompose(ep)


def traced_step() -> ExportedProgram:
    """train_step of the tiny model."""
    model = load("tiny")
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS))
    mobizo.wrap(model, config)
    inputs = batch(1, LENGTH)
    attention = GroupedAttention(model, LENGTH)
    with torch.no_grad(), attention.installed(model), product_rotation(model):
        replace_norms(model)
        graph = DelegatedGraph(
            model,
            groups=GROUPS,
            distribution="outer",
            rule=UpdateRule(),
            candidate_tokens=CANDIDATES,
            attention=attention,
        )
        seeds, coeffs = torch.arange(GROUPS), torch.ones(GROUPS)
        factors = [factor.clone() for factor in graph.inputs(seeds, coeffs)]
        graph.train_step(inputs, factors, [])  # what is made on the way is a constant of the graph then
        step = DelegatedTrainStep(graph).eval()
        return torch.export.export(step, (*inputs, *factors), strict=False)


def row(name: str, make: Callable[[], Partitioner]) -> str:
    """A line of the table."""
    asked = None
    try:
        asked = Asked(make())
        passes = [SeparateConstants(), InferViewSizes()] if name == "XNNPACK" else []
        to_edge_transform_and_lower(traced_step(), transform_passes=passes, partitioner=[asked])
    except Exception as error:  # whatever a backend's own software makes of being asked
        if asked is None or not asked.taken:
            line = (str(error).strip().splitlines() or [""])[0]
            return f"| {name} | - | - | {type(error).__name__}: {line} |"
        # It has answered; that nobody takes what it wanted whole is then an error of ExecuTorch's.
    left = ", ".join(f"{op} {count}" for op, count in sorted(asked.outside.items()))
    return f"| {name} | {asked.taken.total()} | {len(asked.taken)} | {left} |"


def main() -> None:
    warnings.simplefilter("ignore")
    print("| backend | taken | groups | left outside |\n|---|---|---|---|")
    for name, make in BACKENDS.items():
        print(row(name, make), flush=True)


if __name__ == "__main__":
    main()
