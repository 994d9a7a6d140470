"""Multinomial logistic regression on the states of a model, on top of the logits that it has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from mobizo_kernels.loss.label_head import LabelHead

RIDGES = tuple(10.0 ** (power / 2) for power in range(2, -9, -1))
"""In units of the mean square of what is regressed on, the strongest first."""
_PATIENCE = 3  # ridges without a lower validation loss


@dataclass(frozen=True)
class States:
    """Rows as a regression sees them.

    Attributes:
        inputs: what it is linear in, float64 [n, D].
        outputs: what the head gives for the label words now, float64 [n, C].
        labels: int64 [n].
        weights: of the rows, float64 [n], of sum 1.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Regression:
    """What :func:`regress` found.

    Attributes:
        ridge: that validated best, in units of the scaled inputs' mean square; None if zero did best.
        added: to the rows of the head, float64 [C, D]; zeros without a ridge.
        losses: the validation loss of each ridge that was tried, None standing for zero.
    """

    ridge: float | None
    added: torch.Tensor
    losses: dict[float | None, float]


def regress(head: LabelHead, seen: States, held_out: States) -> Regression:
    """Add to the rows of a head what lowers the loss of `seen` most, without an intercept. The penalty,
    `ridge` / 2 times the squared norm of what is added to inputs divided by their spread, is chosen by the
    loss of `held_out`.
    """
    scales = _scales(seen.inputs)
    seen, held_out = (replace(states, inputs=states.inputs * scales) for states in (seen, held_out))
    scale = seen.inputs.square().mean().item()
    axes = _principal_axes(seen)
    best = added = seen.inputs.new_zeros(seen.outputs.shape[1], seen.inputs.shape[1])
    ridge: float | None = None
    losses: dict[float | None, float] = {None: row_losses(head, held_out, added).sum().item()}
    for tried in RIDGES:
        added = _solved(head, seen, axes, tried * scale, added)
        losses[tried] = row_losses(head, held_out, added).sum().item()
        if losses[tried] < losses[ridge]:
            ridge, best = tried, added
        elif list(losses).index(ridge) + _PATIENCE < len(losses):
            break
    return Regression(ridge, best * scales, losses)


def factors_of(added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, H], its rows orthonormal, and B's rows [C, r].

    The largest value of a row of A is positive: so the factors are the same however they were found.
    """
    left, sizes, directions = torch.linalg.svd(added, full_matrices=False)
    rank = int((sizes > 1e-7 * sizes[0]).sum())
    directions = directions[:rank]
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    return signs * directions, left[:, :rank] * (sizes[:rank] * signs[:, 0])


def _scales(inputs: torch.Tensor) -> torch.Tensor:
    """By what to multiply each of the inputs [n, D], so that all spread alike: some values of hidden states
    are a hundred times others, and a penalty on all the same would leave only these to be read. One that is
    the same in all rows has no spread.
    """
    spread = inputs.std(dim=0, correction=0)
    return 1 / spread.clamp(min=1e-6 * spread.max()).clamp(min=torch.finfo(spread.dtype).tiny)


def row_losses(head: LabelHead, states: States, added: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row with `added` [C, D] on the rows of the head, times its weight, [n]."""
    return _row_losses(head, states, states.inputs @ added.T)


def _row_losses(head: LabelHead, states: States, added: torch.Tensor) -> torch.Tensor:
    """The same with `added` [n, C] on what the head gives."""
    logits = head.finished(states.outputs + added)
    return states.weights * F.cross_entropy(logits, states.labels, reduction="none")


def _principal_axes(states: States) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal directions [r, D] that span the states, and the mean square of the states along each."""
    weighted = states.weights.sqrt()[:, None] * states.inputs
    rows, width = weighted.shape
    if rows >= width:
        _, sizes, axes = torch.linalg.svd(weighted, full_matrices=False)
        return axes, sizes.square()
    squares, places = torch.linalg.eigh(weighted @ weighted.T)  # in a fifth of the time
    kept = squares > 1e-12 * squares[-1]
    squares, places = squares[kept], places[:, kept]
    return (places / squares.sqrt()).T @ weighted, squares


def _solved(
    head: LabelHead,
    states: States,
    axes: tuple[torch.Tensor, torch.Tensor],
    ridge: float,
    start: torch.Tensor,
) -> torch.Tensor:
    """What minimises the loss and the penalty, [C, H], by L-BFGS from `start`.

    It is sought along the principal axes, outside of which the penalty lets nothing be. Each is scaled by
    what its curvature is at most, up to a factor: states of language models differ a thousandfold from axis
    to axis, and without the scales it takes thousands of evaluations.
    """
    directions, squares = axes
    # An axis on which nothing lies, of states that are all zeros, has no curvature and no scale.
    scales = (squares / 4 + ridge).clamp(min=torch.finfo(squares.dtype).tiny).rsqrt()
    inputs = states.inputs @ directions.T * scales
    added = (start @ directions.T / scales).requires_grad_()
    solver = torch.optim.LBFGS(
        [added], max_iter=2000, max_eval=4000, history_size=20, tolerance_grad=1e-8, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        solver.zero_grad()
        penalty = ridge / 2 * (scales * added).square().sum()
        total = _row_losses(head, states, inputs @ added.T).sum() + penalty
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return scales * added.detach() @ directions
