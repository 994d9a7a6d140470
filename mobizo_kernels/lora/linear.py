"""The adapted linear: a frozen base layer plus LoRA whose B is perturbed in each group of rows on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from mobizo_kernels import ops


class Directions(nn.Module):
    """The directions that the adapters of a model try in the next forward; one object, shared by all.

    Attributes:
        seeds: int64 [G], the direction of each group of rows.
        coeffs: float32 [G], its signed size. The resting state is G = 1 with coefficient 0: plain LoRA.
        distribution: "gaussian", "rademacher" or "outer".
        active: where the adapters act: None as the model's configuration says, True everywhere, False
            nowhere, or bool [rows, T] for the tokens of the forward.

    Seeds and coefficients are buffers, not numbers: a number would be baked into a traced graph. They are not
    persistent, because they belong to a step and not to the model.
    """

    seeds: torch.Tensor
    coeffs: torch.Tensor

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("seeds", torch.zeros(1, dtype=torch.int64, device=device), persistent=False)
        self.register_buffer("coeffs", torch.zeros(1, dtype=torch.float32, device=device), persistent=False)
        self.distribution = "gaussian"
        self.active: torch.Tensor | bool | None = None

    @contextmanager
    def acting(self, active: torch.Tensor | bool) -> Iterator[None]:
        """Let the adapters act everywhere (True), nowhere (False), or on the tokens of bool [rows, T]."""
        before, self.active = self.active, active
        try:
            yield
        finally:
            self.active = before

    @contextmanager
    def use(
        self, seeds: torch.Tensor, coeffs: torch.Tensor, distribution: str = "gaussian"
    ) -> Iterator[None]:
        """Perturb group g of every forward inside the block by coeffs[g] * z(seeds[g]); plain LoRA after it.

        Args:
            seeds: int64 [G], on any device.
            coeffs: float32 [G], on any device.
            distribution: "gaussian", "rademacher" or "outer".
        """
        rest = self.seeds, self.coeffs, self.distribution
        self.seeds, self.coeffs = seeds.to(self.seeds.device), coeffs.to(self.coeffs.device)
        self.distribution = distribution
        try:
            yield
        finally:
            self.seeds, self.coeffs, self.distribution = rest

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Let `model.to(...)` move the buffers, but keep the coefficients float32."""
        return super()._apply(_keeping_dtype(fn), recurse)


class MPLoRALinear(nn.Module):
    """Multi-perturbed LoRA over a frozen linear (MobiZO, arXiv 2409.15520, with the frozen A of LoRA-FA,
    arXiv 2308.03303): y = base(x) + scaling * (x A^T)(B + coeffs[g] z(seeds[g]))^T for the rows of group g.

    The rows are the leading sizes of x multiplied out; they are split into G equal blocks in their order.

    Args:
        base_layer: any module that maps [..., in_features] to [..., out_features]: `nn.Linear`, a quantised
            linear, transformers' `Conv1D`. It is kept as it is and never written.
        in_features: width of the input.
        out_features: width of the output.
        rank: r, columns of B.
        alpha: LoRA's alpha.
        rslora: scale by alpha / sqrt(r) (arXiv 2312.03732) in place of alpha / r.
        stream: int64 that names B in the noise contract.
        directions: shared by all adapters of the model.

    Attributes:
        lora_a: float32 [r, in_features], zeros until :meth:`reset_lora_a` or until an adapter is loaded.
        lora_b: float32 [out_features, r], zeros: an untrained adapter changes nothing.
        active: where an LM head acts that is given other tokens than the decoder of an Activated LoRA was:
            bool [n] of its rows, or [rows, T], of which it sees the last tokens. None for everywhere.

    A and B are float32 over a base of lower precision, as in PEFT, and stay float32 through `model.half()`,
    `model.to(torch.bfloat16)` and the like, which change the base: a step of training is far smaller than the
    spacing of bfloat16 values. Neither requires a gradient: nothing is ever back-propagated, and autograd
    must not record a forward whose B is then written in place.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        alpha: float,
        rslora: bool = False,
        stream: int,
        directions: Directions,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.rank, self.stream = rank, stream
        self._stream = torch.tensor([stream], device="cpu")  # for graphs that several layers share
        self.scaling = lora_scaling(rank, alpha, rslora)
        self.base_layer = base_layer
        self.directions = directions
        self.active: torch.Tensor | None = None
        kind: dict[str, Any] = {"dtype": torch.float32, "device": device_of(base_layer)}
        self.lora_a = nn.Parameter(torch.zeros(rank, in_features, **kind), requires_grad=False)
        self.lora_b = nn.Parameter(torch.zeros(out_features, rank, **kind), requires_grad=False)
        self.train(base_layer.training)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Let `model.to(...)` move A and B, but keep their values and type."""
        if recurse:
            for module in self.children():
                module._apply(fn)
        return super()._apply(_keeping_dtype(fn), recurse=False)

    @torch.no_grad()
    def reset_lora_a(self, generator: torch.Generator) -> None:
        """Draw A kaiming-uniform as PEFT does, in +-1 / sqrt(in_features), from a generator on the CPU."""
        draw = torch.empty(self.lora_a.shape, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(draw, a=math.sqrt(5), generator=generator)
        self.lora_a.copy_(draw)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features] in the dtype of the base layer's output."""
        out = self.base_layer(x)
        x = x.to(out.dtype)  # they differ under autocast only
        directions = self.directions
        active = directions.active
        if active is None and self.active is not None:
            active = self.active if self.active.dim() == 1 else self.active[:, -x.shape[1] :]
        if active is False:
            return out
        if isinstance(active, torch.Tensor):
            # The adapter of a zero is zero. Some decoders flatten rows and tokens into one size.
            x = x * active.to(x.dtype).reshape(*x.shape[:-1], 1)
        # In place: the base layer's output is fresh, nobody else holds it.
        adapter = self.lora_a, self.lora_b, directions.seeds, directions.coeffs, self.scaling
        if torch.compiler.is_dynamo_compiling() and not (
            torch.compiler.is_exporting() or torch.is_grad_enabled()
        ):
            torch.ops.mobizo.mp_lora_traced_(out, x, *adapter, self._stream, directions.distribution)
            return out
        return ops.mp_lora_(out, x, *adapter, self.stream, directions.distribution)

    def added(self, out: torch.Tensor, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Add the adapter, in place, to some columns of the base layer's output.

        Args:
            out: [..., C], contiguous.
            x: [..., in_features].
            rows: int64 [C], the outputs, which are those of B's rows. B is not perturbed: its noise is that
                of a whole matrix.
        """
        if self.active is not None:
            x = x * self.active.to(x.dtype)[:, None]
        rest = self.directions.seeds.new_zeros(1), self.directions.coeffs.new_zeros(1)
        return ops.mp_lora_(out, x, self.lora_a, self.lora_b[rows], *rest, self.scaling, self.stream)

    def __setattr__(self, name: str, value: Any) -> None:
        """Weight and bias are the base layer's: transformers sets that of a head to tie it."""
        if name in ("weight", "bias"):
            setattr(self.base_layer, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight: some models look at the dtype or device of their linears."""
        weight: torch.Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias."""
        bias: torch.Tensor | None = self.base_layer.bias  # type: ignore[assignment]
        return bias

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scaling={self.scaling:g}"


def lora_scaling(rank: int, alpha: float, rslora: bool = False) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def _keeping_dtype(fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What moves a tensor as `fn` does, without rounding it."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move


def device_of(module: nn.Module) -> torch.device:
    """Where a layer lives: the device of its first parameter or, where it has none, buffer."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
