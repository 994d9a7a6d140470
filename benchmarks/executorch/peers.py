"""The same decoder and loss without our ops: the modules that bench.py compares ours with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from executorch.exir import EdgeProgramManager, to_edge_transform_and_lower
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.executorch.graph import TrainingGraph
from mobizo_kernels.executorch.partitioner import InferViewSizes, LevelPartitioner
from mobizo_kernels.executorch.quantization import quantize
from mobizo_kernels.executorch.rotation import product_rotation
from mobizo_kernels.executorch.xnnpack_rewrites import GroupedAttention, replace_norms
from mobizo_kernels.optim import UpdateRule

EPS, LR = 1e-2, 1e-3
DUAL_STATE = ("lora_plus", "lora_minus")

Inputs = tuple[torch.Tensor, ...]
"""input_ids and attention_mask, int64 [B, T], target_positions and target_ids, int64 [B, 1]."""


class Forward(nn.Module):
    """The limit: the losses [G] of G copies of a batch, with nothing adapted and nothing updated."""

    def __init__(self, program: TrainingGraph) -> None:
        super().__init__()
        self.program = program

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        target_ids: torch.Tensor,
    ) -> torch.Tensor:
        hidden = self.program.hidden(input_ids, attention_mask, target_positions, self.program.groups)
        return self.program.losses(hidden, target_ids)


class LastGradient:
    """The projected gradient that the layers of a graph read: set while it is traced."""

    value = torch.zeros(1)


class DualForward(nn.Module):
    """A step of the paper's dual-forward module, with the loss in the graph.

    What it keeps is B+ and B-; B is their mean and eps z half their difference. Both are made anew at the
    beginning of a step, out of their last values, the projected gradient of the step before and new noise
    from ExecuTorch's own `randn`, a std::mt19937 with a seed of the system's. eps and the learning rate are
    constants, and q is 1.
    """

    def __init__(self, program: TrainingGraph, gradient: LastGradient) -> None:
        super().__init__()
        self.step, self.gradient = Forward(program), gradient

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        target_ids: torch.Tensor,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        """Losses [2] under +eps z and -eps z, from a batch and the last projected gradient, float32 [1]."""
        self.gradient.value = gradient
        return self.step(input_ids, attention_mask, target_positions, target_ids)


class DualLinear(nn.Module):
    """A linear of it, with B+ and B- [r, out]; the upper half of the rows sees B+."""

    lora_a: torch.Tensor
    lora_plus: torch.Tensor
    lora_minus: torch.Tensor

    def __init__(self, base: nn.Linear, rank: int, gradient: LastGradient) -> None:
        super().__init__()
        self.base, self.gradient = base, gradient
        self.register_buffer("lora_a", 2.0 * torch.randn(rank, base.in_features) / base.in_features**0.5)
        noise = EPS * torch.randn(rank, base.out_features)
        self.register_buffer("lora_plus", noise)
        self.register_buffer("lora_minus", -noise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [2B, T, in] -> [2B, T, out]."""
        last = (self.lora_plus - self.lora_minus) * 0.5
        central = (self.lora_plus + self.lora_minus) * 0.5 - self.gradient.value * (LR / EPS) * last
        noise = torch.randn(central.shape) * EPS
        plus, minus = central + noise, central - noise
        self.lora_plus.copy_(plus)
        self.lora_minus.copy_(minus)
        shrunk = F.linear(x, self.lora_a).view(2, -1, len(self.lora_a))
        change = torch.bmm(shrunk, torch.stack([plus, minus]))
        return self.base(x) + change.view(*x.shape[:-1], -1)


@contextmanager
def decoder(
    model: PreTrainedModel, groups: int, inputs: Inputs, candidates: Sequence[int], quantization: str
) -> Iterator[TrainingGraph]:
    """The decoder, in the forms that our programs have, and its loss; the model is changed."""
    quantize(model, quantization, head=False)
    attention = GroupedAttention(model, inputs[0].shape[1])
    with torch.no_grad(), attention.installed(model), product_rotation(model):
        replace_norms(model)
        graph = TrainingGraph(
            model,
            groups=groups,
            distribution="gaussian",
            rule=UpdateRule(),
            candidate_tokens=candidates,
            attention=attention,
        )
        # What is made on the way, as the matrices that rotate, is then a constant for XNNPACK, as in ours.
        Forward(graph)(*inputs)
        yield graph


def adapt(program: TrainingGraph, names: Sequence[str], make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put what `make` makes of them in the place of the named linears."""
    for name, module in list(program.model.named_modules()):
        if name.rpartition(".")[2] in names:
            program.model.set_submodule(name, make(module))


def lower(module: nn.Module, arguments: Inputs) -> EdgeProgramManager:
    """One method named forward, lowered as ours are."""
    exported = torch.export.export(module.eval(), arguments, strict=False)
    passes = [InferViewSizes()]
    return to_edge_transform_and_lower(exported, transform_passes=passes, partitioner=[LevelPartitioner()])
