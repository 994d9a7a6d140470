"""What lets a module compute with moved parameters: hooks, which leave the module and its names as they are.

The rows of whatever a module is given are the leading sizes multiplied out, G equal blocks in their order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mobizo_kernels import ops
from mobizo_kernels.parameters.directions import ParameterDirections, TriedVector


class Trial(ABC):
    """One module's part in a forward that tries directions.

    Attributes:
        name: of the module in its model.
        seen: whether such a forward came by.
    """

    def __init__(self, name: str, directions: ParameterDirections) -> None:
        self.name, self.directions, self.seen = name, directions, False

    def install(self, module: nn.Module) -> list[Any]:
        """Handles of hooks on the module."""
        # Before those of others, which are to see, and may change, what the moved parameters give.
        return [module.register_forward_hook(self.after, with_kwargs=True, prepend=True)]

    def ended(self) -> None:
        """No forward is under way any more, also if an interrupt cut one off."""
        return  # linears and embeddings hold nothing on the way

    @abstractmethod
    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: torch.Tensor
    ) -> torch.Tensor | None:
        """The hook: what the module gives with its parameters moved; None if `out` is that, or changed in
        place.
        """

    def began(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """The input of the module, of which every group has the same part.

        Raises:
            ValueError: where that is not so.
            RuntimeError: if gradients are recorded, which the moves have none of.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("directions are tried without gradients: call the model under torch.no_grad()")
        x: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
        groups = len(self.directions.seeds)
        if x.dim() == 0 or x.shape[0] % groups:
            raise ValueError(
                f"{self.name} sees an input of shape {list(x.shape)}, not the rows of {groups} groups: "
                "freeze its parameters by requires_grad_(False) before wrap_parameters"
            )
        self.seen = True
        return x


class LinearTrial(Trial):
    """y_g = x (W + c_g u_g v_g^T)^T + b + c_g s_g.

    Args:
        name, directions: as of :class:`Trial`.
        stream: of the weight; None if it is not moved.
        bias: None if it is not moved.
        transposed: W is [in, out].
    """

    def __init__(
        self,
        name: str,
        directions: ParameterDirections,
        stream: int | None,
        bias: TriedVector | None,
        transposed: bool,
    ) -> None:
        super().__init__(name, directions)
        self.stream, self.bias, self.transposed = stream, bias, transposed

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: torch.Tensor
    ) -> None:
        """In place: the linear's output is fresh, nobody else holds it."""
        directions = self.directions
        if not directions.trying:
            return
        x = self.began(args, kwargs)
        if self.stream is not None:
            x = x.to(out.dtype)  # they differ under autocast only
            ops.mp_outer_(out, x, directions.seeds, directions.coeffs, self.stream, self.transposed)
        self._shift(out, slice(None))

    def add_rows(self, weight: torch.Tensor, x: torch.Tensor, out: torch.Tensor, rows: torch.Tensor) -> None:
        """The same for the outputs that belong to `rows` of the weight, out [n, len(rows)], in place."""
        directions = self.directions
        if not directions.trying:
            return
        self.seen = True
        if self.stream is not None:
            height, groups = weight.shape[0], len(directions.seeds)
            signs = directions.signs(self.stream, sum(weight.shape))
            dots = x.unflatten(0, (groups, -1)).float() @ signs[:, height:, None]
            slopes = dots * directions.coeffs[:, None, None]
            out.unflatten(0, (groups, -1)).add_(slopes * signs[:, None, rows])
        self._shift(out, rows)

    def _shift(self, out: torch.Tensor, columns: torch.Tensor | slice) -> None:
        if self.bias is not None:
            groups = len(self.directions.seeds)
            shift = self.bias.moved(groups, 1, -1)[..., columns]
            out.view(groups, -1, out.shape[-1]).add_(shift)


class EmbeddingTrial(Trial):
    """y_g = E[ids] + c_g u_g[ids] v_g."""

    def __init__(self, name: str, directions: ParameterDirections, stream: int) -> None:
        super().__init__(name, directions)
        self.stream = stream

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: torch.Tensor
    ) -> torch.Tensor | None:
        directions = self.directions
        if not directions.trying:
            return None
        height, width = module.weight.shape  # type: ignore[misc, operator]
        groups = len(directions.seeds)
        ids = args[0] if args else next(iter(kwargs.values()))
        if ids.dim() == 2 and len(ids) == 1 < groups and directions.rows is not None:
            # The same positions for all rows, which are not the same any more.
            ids, out = ids.expand(directions.rows, -1), out.repeat(directions.rows, 1, 1)
        ids = self.began((ids,), {}).reshape(groups, -1)
        signs = directions.signs(self.stream, height + width)
        slopes = signs.gather(1, ids) * directions.coeffs[:, None]
        # One group after another, so that one of them at a time is in memory twice.
        for part, slope, row in zip(out.view(groups, -1, width), slopes, signs[:, height:], strict=True):
            part.add_(slope[:, None] * row)
        return out


class VectorTrial(Trial):
    """A module whose parameters have one dimension and act on each value of the input's last one, as those of
    norms do: it is called with parameters [G, 1, d] and an input [G, rows, d], both float32, in which a small
    move of a 16-bit parameter is not lost. What it gives is rounded once, to the type of its input.
    """

    def __init__(self, name: str, directions: ParameterDirections, vectors: list[TriedVector]) -> None:
        super().__init__(name, directions)
        self.vectors = vectors
        self._kept: dict[str, nn.Parameter | None] = {}
        self._like: torch.Tensor | None = None

    def install(self, module: nn.Module) -> list[Any]:
        before = module.register_forward_pre_hook(self.before, with_kwargs=True)
        # Called where the forward fails, too: the parameters are put back.
        after = module.register_forward_hook(self.after, with_kwargs=True, prepend=True, always_call=True)
        return [before, after]

    def ended(self) -> None:
        """Put the parameters back where torch did not call `after`, as on KeyboardInterrupt."""
        if self._like is not None:
            self._put_back(self.vectors[0].module)

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self.directions.trying:
            return None
        x, groups = self.began(args, kwargs), len(self.directions.seeds)
        others = [*args[1:], *list(kwargs.values())[not args :]]
        if any(isinstance(other, torch.Tensor) for other in others):
            raise ValueError(
                f"{self.name} is given more than one tensor, such as a gate, and a batched forward is known "
                "for one: freeze its parameters by requires_grad_(False) before wrap_parameters"
            )
        self._like = x
        for vector in self.vectors:
            self._replace(module, vector.name, vector.moved(groups, 1, -1))
        grouped = x.reshape(groups, -1, x.shape[-1]).float()
        if args:
            return (grouped, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): grouped}

    def after(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: torch.Tensor
    ) -> torch.Tensor | None:
        like = self._like
        if like is None:
            return None
        self._put_back(module)
        return None if out is None else self.finished(out).to(like.dtype).view(like.shape)

    def finished(self, out: torch.Tensor) -> torch.Tensor:
        """The module's result from what it made of the replaced parameters, [G, rows, d]."""
        return out

    def _replace(self, module: nn.Module, name: str, value: torch.Tensor | None) -> None:
        self._kept[name] = module._parameters[name]
        module._parameters[name] = value  # type: ignore[assignment]

    def _put_back(self, module: nn.Module) -> None:
        module._parameters.update(self._kept)
        self._kept, self._like = {}, None


class AffineTrial(VectorTrial):
    """nn.LayerNorm and nn.RMSNorm, whose functions take no more than one value for each column: they
    normalise alone, and what follows is done here.
    """

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        changed = super().before(module, args, kwargs)
        if changed is not None:
            self._affine = {name: module._parameters[name] for name in module._parameters}
            for name in module._parameters:
                if name not in self._kept:
                    self._kept[name] = module._parameters[name]
                module._parameters[name] = None
        return changed

    def finished(self, out: torch.Tensor) -> torch.Tensor:
        weight, bias = self._affine.get("weight"), self._affine.get("bias")
        out = out if weight is None else out * weight.float()
        return out if bias is None else out + bias.float()


def is_bare(module: nn.Module) -> bool:
    """Whether a call of the module is its class's `forward` and, maybe, a trial's moves: nobody replaced it
    or hooked something else to it.
    """
    others = any(_trial_of(hook) is None for hook in module._forward_hooks.values())
    return not (others or module._forward_pre_hooks or "forward" in vars(module))


def _trial_of(hook: Any) -> LinearTrial | None:
    trial = getattr(hook, "__self__", None)
    return trial if isinstance(trial, LinearTrial) else None


def perturb_candidates(
    head: nn.Linear, hidden: torch.Tensor, logits: torch.Tensor, candidates: torch.Tensor
) -> None:
    """Move logits [n, C] that were made by the rows `candidates` of an LM head's weight alone, as the
    directions of the moment want it; those of a model that tries none stay.

    Args:
        head: of the model.
        hidden: [n, H], the rows of G groups.
        logits: [n, C], changed in place.
        candidates: int64 [C].
    """
    for hook in head._forward_hooks.values():
        if (trial := _trial_of(hook)) is not None:
            trial.add_rows(head.weight, hidden, logits, candidates)
