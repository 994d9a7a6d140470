"""The closed-form start: a logistic regression on last hidden states, as a LoRA of the LM head."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from time import perf_counter

import torch
import torch.nn.functional as F

from mobizo_kernels.data import EncodedExample, collate, evaluation_batches
from mobizo_kernels.lora import adapt_head, adapter_of
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.agreement import evaluating
from mobizo_kernels.loss.label_head import LabelHead

RIDGES = tuple(10.0 ** (power / 2) for power in range(2, -9, -1))
"""In units of the states' mean square, the strongest first."""
_PATIENCE = 3  # ridges without a lower validation loss


@dataclass(frozen=True)
class Readout:
    """What :func:`readout` found.

    Attributes:
        ridge: that validated best, in units of the states' mean square; None if the model as it was did, and
            the head got no adapter.
        rank: of the head's adapter, 0 without one.
        losses: the validation loss of each ridge that was tried; with None that of the model as it was.
        rows: that it was made of.
        seconds: that it took.
    """

    ridge: float | None
    rank: int
    losses: dict[float | None, float]
    rows: int
    seconds: float


@dataclass(frozen=True)
class _States:
    """Rows as the LM head sees them.

    Attributes:
        hidden: float64 [n, H].
        outputs: what the head gives for the label words now, float64 [n, C].
        labels: int64 [n].
        weights: of the rows, float64 [n], of sum 1.
    """

    hidden: torch.Tensor
    outputs: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


@torch.inference_mode(False)  # whose tensors take part in no gradient
def readout(
    loss: LabelledLoss,
    train: Sequence[EncodedExample],
    validation: Sequence[EncodedExample],
    *,
    validation_loss: LabelledLoss | None = None,
    pad_token: int = 0,
) -> Readout:
    """Forward each row once, solve for the rows of the LM head that belong to the labels' words, and leave
    the solution on the model as a LoRA of its head (:func:`mobizo_kernels.lora.adapt_head`).

    It is a multinomial logistic regression of the last hidden states without an intercept, on top of the
    logits that the model has. Its penalty, `ridge` / 2 times the squared norm of what is added, is chosen by
    the loss on the validation rows. The rows of each label weigh the same in all. For C labels the rank is
    C - 1 at most: what all words get alike makes no difference, unless the model caps its logits. The rows
    are forwarded without dropout, whatever the mode of the model.

    Args:
        loss: of a wrapped model whose head has no adapter, with the words of the labels as its candidate
            tokens, in the order of the labels.
        train: rows of every label.
        validation: the same.
        validation_loss: a loss of the same model that is to see the validation rows, for its store.
        pad_token: fills up rows.

    Returns:
        What was found. The head has no adapter if no ridge did better than the model as it was.

    Raises:
        ValueError: naming the argument, if the model is not wrapped, a label has no rows, a row has several
            targets, a hidden state is not finite, or the head cannot be adapted.
    """
    started = perf_counter()
    adapter_of(loss.model)  # raises where there is none
    if loss.candidates is None:
        raise ValueError("loss needs candidate_tokens: the words of the labels")
    for name, rows in (("train", train), ("validation", validation)):
        _check_rows(name, rows, len(loss.candidates))
    with evaluating(loss.model):
        seen = _states("train", loss, train, pad_token)
        held_out = _states("validation", validation_loss or loss, validation, pad_token)
    scale = seen.hidden.square().mean().item()
    axes = _principal_axes(seen)
    best = added = seen.hidden.new_zeros(len(loss.candidates), seen.hidden.shape[1])
    ridge: float | None = None
    losses: dict[float | None, float] = {None: _loss(loss.head, held_out, added).item()}
    for tried in RIDGES:
        added = _solved(loss.head, seen, axes, tried * scale, added)
        losses[tried] = _loss(loss.head, held_out, added).item()
        if losses[tried] < losses[ridge]:
            ridge, best = tried, added
        elif list(losses).index(ridge) + _PATIENCE < len(losses):
            break
    rank = 0
    if ridge is not None:
        directions, words = _factors(best)
        rank = len(directions)
        adapt_head(loss.model, loss.candidates, directions.float(), words.float())
    return Readout(ridge, rank, losses, len(train), perf_counter() - started)


def rows_in_turn(rows: Sequence[EncodedExample], count: int, seed: int = 0) -> list[EncodedExample]:
    """`count` of the rows by chance, or all that there are, one of each label in turn while it has any."""
    return [rows[number] for number in islice(numbers_in_turn(rows, seed), count)]


def numbers_in_turn(rows: Sequence[EncodedExample], seed: int = 0) -> Iterator[int]:
    """The places in `rows` of all that :func:`rows_in_turn` takes, in its order."""
    by_label: dict[int, list[int]] = defaultdict(list)
    for number in random.Random(seed).sample(range(len(rows)), len(rows)):
        by_label[rows[number].label].append(number)
    turns = chain.from_iterable(zip_longest(*(by_label[label] for label in sorted(by_label))))
    return (number for number in turns if number is not None)


def _check_rows(name: str, rows: Sequence[EncodedExample], labels: int) -> None:
    found = {row.label for row in rows}
    if found != set(range(labels)):
        raise ValueError(f"{name} needs rows of every label from 0 to {labels - 1}, got {sorted(found)}")
    for row in rows:
        if row.targets != 1:
            raise ValueError(f"{name} needs rows whose answer is one token, got one of {row.targets}")


def _states(name: str, loss: LabelledLoss, rows: Sequence[EncodedExample], pad_token: int) -> _States:
    batches = evaluation_batches(rows)
    parts = [loss.hidden_states(collate([rows[row] for row in batch], pad_token)) for batch in batches]
    with torch.no_grad():
        outputs = torch.cat([loss.head.outputs(part) for part in parts])
    if not all(states.isfinite().all() for states in (*parts, outputs)):
        raise ValueError(f"{name} has rows whose last hidden states are not finite")
    order = list(chain.from_iterable(batches))
    labels = torch.tensor([rows[row].label for row in order], device="cpu")
    shares = 1.0 / (labels.bincount() * len(labels.unique())).double()
    return _States(torch.cat(parts).cpu().double(), outputs.cpu().double(), labels, shares[labels])


def _loss(head: LabelHead, states: _States, added: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy with `added` [C, H] on the rows of the head."""
    return _mean_loss(head, states, states.hidden @ added.T)


def _mean_loss(head: LabelHead, states: _States, added: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy with `added` [n, C] on what the head gives."""
    logits = head.finished(states.outputs + added)
    return states.weights @ F.cross_entropy(logits, states.labels, reduction="none")


def _principal_axes(states: _States) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal directions [r, H] that span the states, and the mean square of the states along each."""
    weighted = states.weights.sqrt()[:, None] * states.hidden
    _, sizes, axes = torch.linalg.svd(weighted, full_matrices=False)
    return axes, sizes.square()


def _solved(
    head: LabelHead,
    states: _States,
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
    inputs = states.hidden @ directions.T * scales
    added = (start @ directions.T / scales).requires_grad_()
    solver = torch.optim.LBFGS(
        [added], max_iter=2000, max_eval=4000, history_size=20, tolerance_grad=1e-8, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> torch.Tensor:
        solver.zero_grad()
        total = _mean_loss(head, states, inputs @ added.T) + ridge / 2 * (scales * added).square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return scales * added.detach() @ directions


def _factors(added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, H], its rows orthonormal, and B's rows [C, r].

    The largest value of a row of A is positive: so the factors are the same however they were found.
    """
    left, sizes, directions = torch.linalg.svd(added, full_matrices=False)
    rank = int((sizes > 1e-7 * sizes[0]).sum())
    directions = directions[:rank]
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    return signs * directions, left[:, :rank] * (sizes[:rank] * signs[:, 0])
