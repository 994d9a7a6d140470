"""A readout of several layers: what it adds to the head, and what relays carry there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from mobizo_kernels.loss.label_head import LabelHead
from mobizo_kernels.training.logistic import Regression, States, regress
from mobizo_kernels.training.relays import RelayLayer, final_norm, gains_of, hide, write

_SHARE = 0.15
"""Length of what is carried, in units of the last states'. Less drowns in what they have along the same axes
and in rounding; more shortens all else in the norms of later layers.
"""


@dataclass(frozen=True)
class LayerStates:
    """Rows as several layers see them, at the last token of each prompt.

    Attributes:
        inner: what each relay's linear is given, the neurons of its MLP, by layer, float64 [n, I].
        entering: what the norm before each of these MLPs is given, float64 [n, H].
        residual: the last states before their norm, float64 [n, H].
        last: as the head sees them.
    """

    inner: Mapping[int, torch.Tensor]
    entering: Mapping[int, torch.Tensor]
    residual: torch.Tensor
    last: States


def read_layers(
    head: LabelHead, layers: Mapping[int, RelayLayer], seen: LayerStates, held_out: LayerStates
) -> Regression:
    """Solve for what is read in several layers together, and write it into their adapters.

    The regression begins at no logits, not at those of the model: these are no better a guess of many labels.

    Args:
        head: without an adapter.
        layers: of :func:`mobizo_kernels.training.relays.relay_layers`; their adapters are written.
        seen: the rows that it is made of.
        held_out: by which the ridge is chosen.

    Returns:
        What is then to be added to the head's rows of the label words, [C, H]. Without a ridge nothing is
        written.
    """
    width = seen.residual.shape[1]
    own, bias = _rows_of(head, width)
    found = regress(head, *(_afresh(states, bias) for states in (seen, held_out)))
    if found.ridge is None:
        return found
    added = found.added - found.added.mean(dim=0)  # what all words get alike makes no difference
    carried, at_head = added[:, :-width], added[:, -width:]
    count = len(added) - 1
    inner = torch.cat(list(seen.inner.values()), dim=1)
    # C - 1 signals, uncorrelated, of which the logits are made again.
    words = torch.linalg.svd(inner @ carried.T, full_matrices=False)[2][:count].T  # [C, k]
    maps = words.T @ carried
    sizes = (inner @ maps.T).square().mean(dim=0).sqrt()
    # More for what decides more, but not in proportion: the least would drown.
    shares = (sizes / sizes.square().mean().sqrt()).sqrt() / count**0.5
    lengths = _SHARE * seen.residual.norm(dim=1).mean() * shares / sizes
    axes = _quiet_axes(seen)[:count]
    widths = [states.shape[1] for states in seen.inner.values()]
    for (index, states), part in zip(seen.inner.items(), maps.split(widths, dim=1), strict=True):
        write(layers[index].down, states, part, axes.T * lengths)
    for index, layer in layers.items():
        if index > min(seen.inner):
            hide(layer, axes)
    gains = gains_of(final_norm(head.model), width)
    shrunk = ((seen.last.inputs / gains).norm(dim=1) / seen.residual.norm(dim=1)).mean()
    at_head = at_head - (own - own.mean(dim=0)) + words @ (axes / gains / (lengths * shrunk)[:, None])
    return replace(found, added=at_head)


def _quiet_axes(seen: LayerStates) -> torch.Tensor:
    """Orthonormal directions of the residual stream, float64 [H, H], those first on which the states of the
    layers that are read, and the last ones, lie least.
    """
    states = [*seen.entering.values(), seen.residual]
    units = torch.cat([part / part.norm(dim=1, keepdim=True) for part in states])
    _, axes = torch.linalg.eigh(units.T @ units)
    return axes.T


def _afresh(states: LayerStates, bias: torch.Tensor) -> States:
    """All layers side by side, the last states behind them, of which the model makes nothing yet."""
    inputs = torch.cat([*states.inner.values(), states.last.inputs], dim=1)
    return replace(states.last, inputs=inputs, outputs=bias.expand_as(states.last.outputs))


@torch.no_grad()
def _rows_of(head: LabelHead, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The head's rows of the label words, whatever its kind, float64 [C, H], and its biases [C]."""
    model = head.model
    inputs = torch.eye(width, dtype=model.dtype, device=model.device)
    outputs = head.outputs(torch.cat([torch.zeros_like(inputs[:1]), inputs])).double().cpu()
    return (outputs[1:] - outputs[0]).T, outputs[0]
