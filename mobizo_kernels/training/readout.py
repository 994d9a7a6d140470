"""The closed-form start: a logistic regression on last hidden states, as a LoRA of the LM head."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from time import perf_counter

import torch
from transformers import PreTrainedModel

from mobizo_kernels.choices import ReadoutLayers
from mobizo_kernels.data import EncodedExample, collate, evaluation_batches
from mobizo_kernels.lora import adapt_head, adapter_of
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.agreement import evaluating
from mobizo_kernels.training.layer_readout import LayerStates, read_layers
from mobizo_kernels.training.logistic import States, factors_of, regress, row_losses
from mobizo_kernels.training.relays import RelayLayer, final_norm, places, relay_layers
from mobizo_kernels.training.selection import Selection


@dataclass(frozen=True)
class Readout:
    """What :func:`readout` found.

    Attributes:
        ridge: that validated best, in units of the scaled states' mean square; None if the model as it was
            did, and the head got no adapter.
        rank: of the head's adapter, 0 without one.
        losses: the validation loss of each ridge that was tried; with None that of the model as it was.
        rows: that it was made of.
        seconds: that it took.
        layers: whose MLPs are read, too, by their indices; none if the last states alone are.
    """

    ridge: float | None
    rank: int
    losses: dict[float | None, float]
    rows: int
    seconds: float
    layers: tuple[int, ...] = ()


@torch.inference_mode(False)  # whose tensors take part in no gradient
def readout(
    loss: LabelledLoss,
    train: Sequence[EncodedExample],
    validation: Sequence[EncodedExample],
    *,
    validation_loss: LabelledLoss | None = None,
    layers: ReadoutLayers = "last",
    pad_token: int = 0,
) -> Readout:
    """Forward each row once, solve for the rows of the LM head that belong to the labels' words, and leave
    the solution on the model as a LoRA of its head (:func:`mobizo_kernels.lora.adapt_head`).

    It is a multinomial logistic regression of the last hidden states without an intercept, on top of the
    logits that the model has. Its penalty is `ridge` / 2 times the squared norm of what is added to states
    whose values are divided by their spread, and is chosen by the loss on the validation rows. The rows of
    each label weigh the same in all. For C labels the rank is C - 1 at most: what all words get alike makes
    no difference, unless the model caps its logits. The rows are forwarded without dropout, whatever the mode
    of the model.

    With `layers="several"` the MLPs of some upper layers are read together with the last states, unless that
    does significantly worse on the validation rows (:class:`Selection`). C - 1 ranks of the adapters of all
    linears from the first of them on are written, A and B, for what is read has to get to the head.

    Args:
        loss: of a wrapped model whose head has no adapter, with the words of the labels as its candidate
            tokens, in the order of the labels.
        train: rows of every label.
        validation: the same.
        validation_loss: a loss of the same model that is to see the validation rows, for its store.
        layers: "last", "several", or "auto": several where the model and its adapters are of a kind for it.
        pad_token: fills up rows.

    Returns:
        What was found. The head has no adapter if no ridge did better than the model as it was.

    Raises:
        ValueError: naming the argument, if the model is not wrapped, a label has no rows, a row has several
            targets, a hidden state is not finite, the head cannot be adapted, or several layers are asked for
            and cannot be read.
    """
    started = perf_counter()
    adapter_of(loss.model)  # raises where there is none
    if loss.candidates is None:
        raise ValueError("loss needs candidate_tokens: the words of the labels")
    for name, rows in (("train", train), ("validation", validation)):
        _check_rows(name, rows, len(loss.candidates))
    model, validating = loss.model, validation_loss or loss
    carrying = _carrying(model, len(loss.candidates) - 1, layers)
    drawn = {linear: linear.lora_a.clone() for layer in carrying.values() for linear in layer.linears}
    read: tuple[int, ...] = ()
    rank = 0
    try:
        with evaluating(model):
            seen = _states("train", loss, train, pad_token, carrying)
            held_out = _states("validation", validating, validation, pad_token, carrying)
            found = regress(loss.head, seen.last, held_out.last)
            several = read_layers(loss.head, carrying, seen, held_out) if carrying else None
            if several is not None and several.ridge is not None:
                # As it arrives, not as it was solved for.
                last = _states("validation", validating, validation, pad_token, {}).last
                arrived = row_losses(loss.head, last, several.added)
                selection = Selection()
                selection.keep(row_losses(loss.head, held_out.last, found.added))
                if selection.keep(arrived):
                    read = tuple(seen.inner)
                    losses = {**several.losses, None: found.losses[None], several.ridge: arrived.sum().item()}
                    found = replace(several, losses=losses)
        if found.ridge is not None:
            directions, words = factors_of(found.added)
            adapt_head(model, loss.candidates, directions.float(), words.float())
            rank = len(directions)
    finally:
        if not (read and rank):  # the layers are left as they were
            for linear, a in drawn.items():
                linear.lora_a.copy_(a)
                linear.lora_b.zero_()
    return Readout(found.ridge, rank, found.losses, len(train), perf_counter() - started, read)


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


def _carrying(model: PreTrainedModel, rank: int, layers: ReadoutLayers) -> dict[int, RelayLayer]:
    """The layers that several are read of; none for the last states alone."""
    if layers == "last":
        return {}
    try:
        return relay_layers(model, rank)
    except ValueError:
        if layers == "several":
            raise
        return {}


def _check_rows(name: str, rows: Sequence[EncodedExample], labels: int) -> None:
    found = {row.label for row in rows}
    if found != set(range(labels)):
        raise ValueError(f"{name} needs rows of every label from 0 to {labels - 1}, got {sorted(found)}")
    for row in rows:
        if row.targets != 1:
            raise ValueError(f"{name} needs rows whose answer is one token, got one of {row.targets}")


def _states(
    name: str,
    loss: LabelledLoss,
    rows: Sequence[EncodedExample],
    pad_token: int,
    carrying: Mapping[int, RelayLayer],
) -> LayerStates:
    batches = evaluation_batches(rows)
    chosen = places(carrying)
    watched = [module for index in chosen for module in (carrying[index].down, carrying[index].norm)]
    parts = []
    for batch in batches:
        tokens = collate([rows[row] for row in batch], pad_token)
        if carrying:
            parts.append(loss.states_entering([*watched, final_norm(loss.model)], tokens))
        else:
            parts.append([loss.hidden_states(tokens)])
    with torch.no_grad():
        outputs = torch.cat([loss.head.outputs(part[-1]) for part in parts])
    *inside, hidden = (torch.cat(states) for states in zip(*parts, strict=True))
    if not all(states.isfinite().all() for states in (*inside, hidden, outputs)):
        raise ValueError(f"{name} has rows whose hidden states are not finite")
    order = list(chain.from_iterable(batches))
    labels = torch.tensor([rows[row].label for row in order], device="cpu")
    shares = 1.0 / (labels.bincount() * len(labels.unique())).double()
    last = States(hidden.cpu().double(), outputs.cpu().double(), labels, shares[labels])
    *stream, residual = [states.cpu().double() for states in inside] or [last.inputs]
    pairs = dict(zip(chosen, zip(stream[::2], stream[1::2], strict=True), strict=True))
    return LayerStates(
        {index: inner for index, (inner, _) in pairs.items()},
        {index: entering for index, (_, entering) in pairs.items()},
        residual,
        last,
    )
