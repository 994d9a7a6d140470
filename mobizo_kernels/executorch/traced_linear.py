"""An adapted linear in the graph of a training program."""

from __future__ import annotations

import torch
from torch import nn

from mobizo_kernels import ops
from mobizo_kernels.lora import MPLoRALinear
from mobizo_kernels.optim import UpdateRule


class TracedDirections:
    """The seeds and coefficients that the adapters of a graph read: set while a method is traced.

    No module with buffers as in eager: a traced method would write its inputs into them.
    """

    def __init__(self, distribution: str) -> None:
        self.distribution = distribution
        self.seeds = torch.zeros(1, dtype=torch.int64)
        self.coeffs = torch.zeros(1)
        self.acting = True  # else the adapters are passed by
        # float32 [1, T, 1], 1 at tokens where they act and 0 elsewhere; None for everywhere.
        self.active: torch.Tensor | None = None

    def use(self, seeds: torch.Tensor, coeffs: torch.Tensor) -> None:
        """seeds int64 [G] and coeffs float32 [G] of the forward that follows."""
        self.seeds, self.coeffs = seeds, coeffs


class TracedLinear(nn.Module):
    """:class:`MPLoRALinear` with B, and what the optimizer keeps of it, as buffers, which a program can keep
    and change.

    B is read by our ops only: a delegate that were given it would bake its first value in.
    """

    lora_a: torch.Tensor
    lora_b: torch.Tensor

    def __init__(self, layer: MPLoRALinear, directions: TracedDirections, rule: UpdateRule) -> None:
        super().__init__()
        self.base_layer, self.directions, self.rule = layer.base_layer, directions, rule
        self.scaling, self.stream = layer.scaling, layer.stream
        self.register_buffer("lora_a", layer.lora_a.detach().float().contiguous())
        self.register_buffer("lora_b", layer.lora_b.detach().float().contiguous().clone())
        for name in rule.state:
            self.register_buffer(name, torch.zeros_like(self.lora_b))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = self.directions
        if not d.acting:
            return self.base_layer(x)
        adapted = x if d.active is None else x * d.active
        return ops.mp_lora(
            self.base_layer(x), adapted, self.lora_a, self.lora_b, d.seeds, d.coeffs, self.scaling,
            self.stream, d.distribution,
        )  # fmt: skip

    @property
    def state(self) -> list[torch.Tensor]:
        """What the optimizer keeps."""
        return [self.get_buffer(name) for name in self.rule.state]

    def update(
        self, seeds: torch.Tensor, coeffs: torch.Tensor, lr: torch.Tensor, decay: torch.Tensor | None
    ) -> torch.Tensor:
        """The rule's update of B and its state in place; the L2 norm of its change of B, [1].

        Args:
            seeds: int64 [q].
            coeffs: float32 [q].
            lr: float32 [1]; read by a rule that takes its rate.
            decay: float32 [1] or None; B is multiplied by it first, which the norm leaves out. Our ops take a
                number there, which a graph would keep.
        """
        rule, stream, distribution = self.rule, self.stream, self.directions.distribution
        if decay is not None:
            self.lora_b.mul_(decay)
        if rule.name == "adam":
            mean, square = self.state
            return ops.zo_adam(
                self.lora_b, mean, square, seeds, coeffs, lr, stream, *rule.betas, rule.eps, 1.0, distribution
            )
        if rule.name == "sign":
            return ops.zo_sign(self.lora_b, seeds, coeffs, lr, stream, 1.0, distribution)
        if rule.momentum:
            (velocity,) = self.state
            return ops.zo_momentum(
                self.lora_b, velocity, seeds, coeffs, stream, rule.momentum, 1.0, distribution
            )
        return ops.zo_update(self.lora_b, seeds, coeffs, stream, 1.0, distribution)
