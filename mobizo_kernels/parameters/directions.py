"""The directions that a forward tries on all parameters, and the vectors among these, moved once for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from mobizo_kernels import ops
from mobizo_kernels.lora import Directions


@dataclass
class TriedVector:
    """A parameter of one dimension, whose directions "outer" are plain signs.

    Attributes:
        module: that holds it.
        name: its attribute there.
        stream: of its noise.
        is_shift: it is the bias of a linear, which adds it by itself: `values` are what comes on top.
        values: float32 [G, d] while a forward tries directions: the parameter of each group.
    """

    module: nn.Module
    name: str
    stream: int
    is_shift: bool = False
    values: torch.Tensor | None = None

    def start(self, groups: int) -> torch.Tensor:
        """What c_g z_g is added to, float32 [G, d]."""
        vector: torch.Tensor = getattr(self.module, self.name)
        shape = (groups, vector.shape[0])
        if self.is_shift:
            return torch.zeros(shape, dtype=torch.float32, device=vector.device)
        return vector.detach().float().expand(shape).clone()

    def moved(self, *shape: int) -> torch.Tensor:
        """`values` in another shape."""
        assert self.values is not None
        return self.values.view(shape)


class ParameterDirections(Directions):
    """The directions that a wrapped model tries on its parameters in the next forward.

    Attributes:
        seeds: int64 [G].
        coeffs: float32 [G].
        trying: whether parameters are moved; a model at rest computes what it did before it was wrapped.
        vectors: the parameters of one dimension.
        rows: of the forward to come, where that is known: embeddings of positions are looked up for one.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__(device)
        self.distribution = "outer"
        self.trying = False
        self.vectors: list[TriedVector] = []
        self.rows: int | None = None

    @contextmanager
    def use(self, seeds: torch.Tensor, coeffs: torch.Tensor, distribution: str = "outer") -> Iterator[None]:
        """Let group g of every forward inside the block see each parameter moved by coeffs[g] * z(seeds[g]).

        Args:
            seeds: int64 [G], on any device.
            coeffs: float32 [G], on any device.
            distribution: "outer".

        Raises:
            ValueError: for another distribution.
        """
        check_outer(distribution)
        with super().use(seeds, coeffs, distribution):
            try:
                self._move_vectors()
                self.trying = True
                yield
            finally:
                self.trying = False
                for vector in self.vectors:
                    vector.values = None

    @torch.no_grad()
    def _move_vectors(self) -> None:
        """By the op and the operations of an update: one launch for each group."""
        groups = len(self.seeds)
        stacks, streams = [v.start(groups) for v in self.vectors], [v.stream for v in self.vectors]
        for group in range(groups if stacks else 0):
            one = slice(group, group + 1)
            rows = [stack[group] for stack in stacks]
            ops.foreach_perturb_(rows, self.seeds[one], self.coeffs[one], streams, 1.0, "outer")
        for vector, stack in zip(self.vectors, stacks, strict=True):
            vector.values = stack

    def signs(self, stream: int, count: int) -> torch.Tensor:
        """The first `count` signs of a stream under every seed, float32 [G, count]."""
        return torch.stack([ops.noise([count], seed, stream, "rademacher") for seed in self.seeds])


def check_outer(distribution: str) -> None:
    """Raise ValueError unless directions have the form that one batched forward can try."""
    if distribution != "outer":
        raise ValueError(
            "distribution must be 'outer' for a model of wrap_parameters, whose one batched forward has no "
            f"room for independent noise of each weight, got {distribution!r}; "
            "unwrap_parameters(model) makes one forward for each group, with any distribution"
        )
