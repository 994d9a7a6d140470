"""From losses to projected gradients: which perturbed copies of the batch a step sees, and what they tell.

A projected gradient is the slope of the loss along one direction; with its seed it is the whole gradient
estimate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch

from mobizo_kernels.choices import EstimatorName
from mobizo_kernels.optim.update_rule import check_number, is_positive_float32


@dataclass(frozen=True)
class Estimator(ABC):
    """One step's plan: G groups, each a copy of the batch seen by a perturbed model.

    Args:
        queries: q, directions in each step.
        eps: size of a perturbation; 1e-2 suits LoRA and 1e-3 full parameters.
        normalize: divide the loss differences by the standard deviation of the step's perturbed losses in
            place of eps (FZOO, arXiv 2506.09034): the step then does not depend on the scale of the loss, and
            a learning rate is a length along each direction.

    Attributes:
        name: in journals, states and programs.

    Raises:
        ValueError: if `queries` is no integer or below 1, `eps` is not positive and finite in float32, or
            `normalize` has one loss only.
    """

    name: ClassVar[EstimatorName]

    queries: int = 4
    eps: float = 1e-2
    normalize: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.queries, Integral):
            raise ValueError(f"queries must be an integer, got {self.queries!r}")
        if self.queries < 1:
            raise ValueError(f"queries must be at least 1, got {self.queries}")
        object.__setattr__(self, "queries", int(self.queries))  # also of numpy, which JSON does not know
        check_number("eps", self.eps)
        if self.normalize not in (True, False):  # a text would count as true
            raise ValueError(f"normalize must be True or False, got {self.normalize!r}")
        if not is_positive_float32(self.eps):
            raise ValueError(f"eps must be positive and finite in float32, got {self.eps}")
        object.__setattr__(self, "eps", float(self.eps))

    def as_json(self) -> dict[str, Any]:
        """All that decides on what a step sees, by the names that a journal's header has for it."""
        return {
            "estimator": self.name,
            "queries": self.queries,
            "eps": self.eps,
            "normalize": self.normalize,
        }

    @property
    def groups(self) -> int:
        """G."""
        return len(self.plan())

    @abstractmethod
    def plan(self) -> list[tuple[int, int]]:
        """For each group its query and its sign: +1, -1, or 0 for the clean model."""

    @abstractmethod
    def loss(self, losses: torch.Tensor) -> float:
        """The loss of the step to report, from losses [G]."""

    @abstractmethod
    def differences(self, losses: torch.Tensor) -> torch.Tensor:
        """How much each query's perturbation of size eps changes the loss, [q], from losses [G]."""

    @abstractmethod
    def perturbed(self, losses: torch.Tensor) -> torch.Tensor:
        """Those of losses [G] that belong to perturbed groups."""

    def seeds(self, query_seeds: torch.Tensor) -> torch.Tensor:
        """The seed of each group, int64 [G], from those of the queries, int64 [q]."""
        return query_seeds[[query for query, _ in self.plan()]]

    def coeffs(self) -> torch.Tensor:
        """The signed size of each group's perturbation, float32 [G]."""
        sizes = [sign * self.eps for _, sign in self.plan()]
        return torch.tensor(sizes, dtype=torch.float32, device="cpu")

    def projected_gradients(self, losses: torch.Tensor) -> torch.Tensor:
        """The slope along each query's direction, float32 [q], computed in float64 on the CPU.

        Args:
            losses: [G]; the slopes are NaN if one of them is not finite.

        Raises:
            ValueError: if `losses` is not of shape [G].
        """
        if losses.shape != (self.groups,):
            raise ValueError(f"losses must have shape [{self.groups}], got {list(losses.shape)}")
        losses = losses.detach().cpu().double()
        slopes = self.slopes(losses)
        return slopes.masked_fill(~losses.isfinite().all(), float("nan")).float()

    def slopes(self, losses: torch.Tensor) -> torch.Tensor:
        """:meth:`projected_gradients` before their rounding, float64 [q], from losses float64 [G].

        Nothing is read back from the device of `losses`, and the bits are the same on every device.
        """
        differences = self.differences(losses)
        if not self.normalize:
            # By a tensor: on a GPU torch divides by a number by multiplying with its reciprocal.
            return differences / torch.full_like(differences, self.eps)
        spread = _standard_deviation(self.perturbed(losses))
        # Equal losses tell the directions apart in no way: no step, rather than a division by zero.
        return torch.where(spread > 0, differences / spread, torch.zeros_like(differences))


@dataclass(frozen=True)
class TwoSided(Estimator):
    """Central differences, g_k = (L(+eps z_k) - L(-eps z_k)) / (2 eps) (SPSA as in MeZO, arXiv 2305.17333,
    Definition 1, with the q queries of MobiZO, arXiv 2409.15520). Groups 0..q-1 carry +eps, q..2q-1 -eps.
    """

    name: ClassVar[EstimatorName] = "two_sided"

    def plan(self) -> list[tuple[int, int]]:
        return [(query, sign) for sign in (1, -1) for query in range(self.queries)]

    def loss(self, losses: torch.Tensor) -> float:
        """Mean of all groups: the clean loss up to terms of order eps^2."""
        return losses.mean().item()

    def differences(self, losses: torch.Tensor) -> torch.Tensor:
        return (losses[: self.queries] - losses[self.queries :]) / 2

    def perturbed(self, losses: torch.Tensor) -> torch.Tensor:
        return losses


@dataclass(frozen=True)
class OneSided(Estimator):
    """Forward differences, g_k = (L(+eps z_k) - L) / eps (FZOO, arXiv 2506.09034): q + 1 groups, not 2q.
    Group 0 is clean, groups 1..q carry +eps.
    """

    name: ClassVar[EstimatorName] = "one_sided"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize and self.queries < 2:
            raise ValueError("normalize needs at least 2 queries with the one_sided estimator, got 1")

    def plan(self) -> list[tuple[int, int]]:
        return [(0, 0), *((query, 1) for query in range(self.queries))]

    def loss(self, losses: torch.Tensor) -> float:
        """The loss of the clean group."""
        return losses[0].item()

    def differences(self, losses: torch.Tensor) -> torch.Tensor:
        return losses[1:] - losses[0]

    def perturbed(self, losses: torch.Tensor) -> torch.Tensor:
        return losses[1:]


@dataclass(frozen=True)
class Centred(Estimator):
    """One-sided, centred by the losses themselves: q groups, all +eps, and no clean one.

    g_k = (L(+eps z_k) - mean of the other losses) / eps. That baseline, leave-one-out as in RLOO (arXiv
    2402.14740), knows nothing of z_k, so g_k has the expectation of a forward difference; and what all
    directions have in common, of the curvature and of rounding, cancels. It is q / (q - 1) times the distance
    from the mean of all losses. With `normalize` it is that distance itself, over their standard deviation.
    """

    name: ClassVar[EstimatorName] = "centred"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries < 2:
            raise ValueError(f"queries must be at least 2 with the centred estimator, got {self.queries}")

    def plan(self) -> list[tuple[int, int]]:
        return [(query, 1) for query in range(self.queries)]

    def loss(self, losses: torch.Tensor) -> float:
        """Mean of all groups: the clean loss and eps^2 / 2 times the trace of its Hessian, up to noise."""
        return losses.mean().item()

    def differences(self, losses: torch.Tensor) -> torch.Tensor:
        count = torch.full_like(losses[0], len(losses))
        deviations = losses - _sum(losses) / count
        return deviations if self.normalize else deviations * count / (count - 1)

    def perturbed(self, losses: torch.Tensor) -> torch.Tensor:
        return losses


def _standard_deviation(values: torch.Tensor) -> torch.Tensor:
    """Of a sample [n], n >= 2: `values.std()` with sums whose order, and so whose bits, no device chooses."""
    count = torch.full_like(values[0], len(values))
    deviations = values - _sum(values) / count
    return (_sum(deviations * deviations) / (count - 1)).sqrt()


def _sum(values: torch.Tensor) -> torch.Tensor:
    """Of [n], by additions of halves: one element-wise operation for each doubling of n."""
    while len(values) > 1:
        half, rest = divmod(len(values), 2)
        added = values[:half] + values[half : 2 * half]
        values = torch.cat([added, values[-1:]]) if rest else added
    return values[0]
