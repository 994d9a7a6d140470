"""The losses of a model's perturbed copies: in batched forwards, or one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mobizo_kernels.lora import adapter_of, is_wrapped
from mobizo_kernels.optim.base import ZOOptimizer
from mobizo_kernels.parameters import has_wrapped_parameters, parameter_directions
from mobizo_kernels.zo.batches import Measure
from mobizo_kernels.zo.estimators import Estimator


def is_batched(model: nn.Module) -> bool:
    """Whether one forward sees several groups."""
    return is_wrapped(model) or has_wrapped_parameters(model)


class Trials:
    """Tries the directions of a step.

    Args:
        model: that is tuned.
        estimator: says which groups there are.
        optimizer: perturbs the parameters of a model that is not wrapped.
        distribution: of the directions.
    """

    def __init__(
        self, model: nn.Module, estimator: Estimator, optimizer: ZOOptimizer, distribution: str
    ) -> None:
        self._model, self._estimator = model, estimator
        self._optimizer, self._distribution = optimizer, distribution

    def losses(
        self, measure: Measure, seeds: torch.Tensor, parts: Sequence[slice]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The losses of some groups, and what was left on the parameters.

        Args:
            measure: gives the losses of the groups that a forward sees.
            seeds: int64 [q], of the queries.
            parts: contiguous ranges of groups; a wrapped model has a forward for each.

        Returns:
            float32 [n] on the CPU, n groups in order; and None for a wrapped model, else what of each
            direction is still on the parameters, float32 [q]. It does not depend on `parts`.
        """
        if is_batched(self._model):
            return torch.cat([self._batched(measure, seeds, part) for part in parts]), None
        return self._sequential(measure, seeds, parts)

    def take_off(self, seeds: torch.Tensor, standing: torch.Tensor | None) -> None:
        """Take what :meth:`losses` left off the parameters."""
        if standing is not None and standing.any():
            self._optimizer.perturb(seeds[standing != 0], -standing[standing != 0])

    def _batched(self, measure: Measure, seeds: torch.Tensor, part: slice) -> torch.Tensor:
        """float32 [n] from one forward of each batch."""
        model, estimator = self._model, self._estimator
        directions = adapter_of(model).directions if is_wrapped(model) else parameter_directions(model)
        seeds, coeffs = estimator.seeds(seeds)[part], estimator.coeffs()[part]
        with directions.use(seeds, coeffs, self._distribution):
            return measure(len(seeds))

    def _sequential(
        self, measure: Measure, seeds: torch.Tensor, parts: Sequence[slice]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From a forward for each group. All perturbations are made, also where another process takes the
        loss: their rounding is then the same everywhere.
        """
        losses, standing = _zeros(self._estimator.groups), _zeros(len(seeds))
        coeffs, plan = self._estimator.coeffs(), self._estimator.plan()
        wanted_groups = {group for part in parts for group in range(part.start, part.stop)}
        try:
            # Groups of one query follow each other, so that a pass has two directions at most.
            for group in sorted(range(len(plan)), key=lambda group: plan[group][0]):
                wanted = _zeros(len(seeds))
                wanted[plan[group][0]] = coeffs[group]
                change = wanted - standing
                if change.any():
                    self._optimizer.perturb(seeds[change != 0], change[change != 0])
                standing = wanted
                if group in wanted_groups:
                    losses[group] = measure(1)
        except BaseException:
            self.take_off(seeds, standing)
            raise
        return torch.cat([losses[part] for part in parts]), standing


def _zeros(count: int) -> torch.Tensor:
    """float32 [count] on the CPU, whatever torch's defaults are."""
    return torch.zeros(count, dtype=torch.float32, device="cpu")
