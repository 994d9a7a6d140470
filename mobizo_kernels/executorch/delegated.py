"""The graph of a training program whose step is stock operators alone, so that a delegate takes all of it.

LoRA-B and the directions are inputs of the methods, which no delegate can bake in. Whoever runs the program
keeps B, draws the directions and makes the updates: executorch_ops/trainer/program/host_adapter.h.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mobizo_kernels import ops
from mobizo_kernels.executorch.graph import Tensors, TrainingGraph
from mobizo_kernels.executorch.traced_linear import TracedDirections
from mobizo_kernels.executorch.training_methods import Method
from mobizo_kernels.executorch.widening import Widening
from mobizo_kernels.lora import MPLoRALinear


class DelegatedLinear(nn.Module):
    """:class:`MPLoRALinear` under directions "outer" as products of matrices:

    x -> W x + h B^T + (h . v_g) u_g with h = scaling * (x A^T) and the coefficient in u_g, for the rows of
    each group g. There is one B for all groups, as in our op.
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaled_a: torch.Tensor

    def __init__(self, layer: MPLoRALinear, directions: TracedDirections) -> None:
        super().__init__()
        self.base_layer, self.directions, self.stream = layer.base_layer, directions, layer.stream
        self.register_buffer("lora_a", layer.lora_a.detach().float().contiguous())
        self.register_buffer("lora_b", layer.lora_b.detach().float().contiguous().clone())
        self.register_buffer("scaled_a", self.lora_a * layer.scaling)
        self.factors: Tensors = (self.lora_b,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [G * B, ..., in] -> [G * B, ..., out], under `factors`: B [out, r] and, if the step has
        directions, u [G, out], which carries the coefficients, and v [G, r].
        """
        base = self.base_layer(x)
        if not self.directions.acting:
            return base
        lora_b, *signs = self.factors
        out, rank = lora_b.shape
        shrunk = F.linear(x, self.scaled_a)
        if self.directions.active is not None:
            shrunk = shrunk * self.directions.active
        # bmm, not matmul: the copies that broadcasting makes would stay outside and cut the graph.
        change = torch.bmm(shrunk.reshape(1, -1, rank), lora_b.t()[None])
        if signs:
            u, v = signs
            slopes = torch.bmm(shrunk.reshape(len(v), -1, rank), v[:, :, None])
            # Added before it has the shape of base: torch.export sees no dynamic size through the other way.
            change = change + (slopes * u[:, None, :]).reshape(1, -1, out)
        return base + change.view(base.shape)


class BroadcastWidening(Widening):
    """Copies by a product with ones, which XNNPACK takes, as it does no repeat."""

    def copies(self, tensor: torch.Tensor, groups: int) -> torch.Tensor:
        """tensor [rows, ...] -> [groups * rows, ...], copy after copy."""
        if not tensor.is_floating_point():
            return super().copies(tensor, groups)
        return (tensor[None] * torch.ones(groups, *[1] * tensor.dim())).flatten(0, 1)


class DelegatedGraph(TrainingGraph):
    """A :class:`TrainingGraph` of :class:`DelegatedLinear`; its distribution is "outer"."""

    widening_type = BroadcastWidening

    def linear_of(self, layer: MPLoRALinear) -> Any:
        """What stands for an adapted linear in the graph."""
        return DelegatedLinear(layer, self.directions)

    def inputs(self, seeds: torch.Tensor, coeffs: torch.Tensor) -> list[torch.Tensor]:
        """What `train_step` is given in the place of seeds and coefficients: every B [out, r], every u
        [G, out], which carries the coefficients, every v [G, r].
        """
        u, v = [], []
        for linear in self.linears:
            out, rank = linear.lora_b.shape
            signs = torch.stack([ops.noise([out + rank], s, linear.stream, "rademacher") for s in seeds])
            u.append(signs[:, :out] * coeffs[:, None])
            v.append(signs[:, out:].contiguous())
        return [*self.adapter_inputs(), *u, *v]

    def adapter_inputs(self) -> list[torch.Tensor]:
        """Every B [out, r]."""
        return [linear.lora_b for linear in self.linears]

    def use(self, inputs: Tensors) -> None:
        """The factors of every linear in the forward that follows; with B alone it is unperturbed."""
        for number, linear in enumerate(self.linears):
            linear.factors = tuple(inputs[number :: len(self.linears)])

    def gathered(self, states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """states [rows, T, H] at positions int64 [rows, K] -> [rows, K, H], as a product: XNNPACK has no
        gather, which would cut the LM head off.
        """
        chosen = positions[:, :, None] == torch.arange(states.shape[1])
        return torch.bmm(chosen.to(states.dtype), states)


class DelegatedMethod(Method):
    """One method over a :class:`DelegatedGraph`."""

    program: DelegatedGraph


class DelegatedTrainStep(DelegatedMethod):
    """The batched forward of a step; `factors` are those of :meth:`DelegatedGraph.inputs`, then perhaps what
    is added to the head.
    """

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        target_ids: torch.Tensor,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        batch = (input_ids, attention_mask, target_positions, target_ids)
        count = 3 * len(self.program.linears)
        return self.program.train_step(batch, factors[:count], factors[count:])


class DelegatedEvaluate(DelegatedMethod):
    """The logits of the unperturbed model at the target positions and, for a readout, the states there."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target_positions: torch.Tensor,
        *factors: torch.Tensor,
    ) -> Any:
        batch, count = (input_ids, attention_mask, target_positions), len(self.program.linears)
        return self.program.evaluate(batch, factors[:count], factors[count:])
