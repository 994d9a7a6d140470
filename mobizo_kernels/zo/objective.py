"""What a step minimises in place of the cross-entropy, and how losses are shaped to weigh directions.

Whatever can be computed of a perturbed model will do: nothing has to have a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from mobizo_kernels.choices import Shaping as Shaping

Objective = Callable[[nn.Module, Mapping[str, torch.Tensor], int], torch.Tensor]
"""`objective(model, batch, groups)` gives the loss of each group, float [groups]; lower is better. It is
called while the directions of the step are in use, and runs the model on `groups` equal blocks of rows."""


def check_shaping(shaping: str) -> None:
    """Raise ValueError if there is no shaping of that name."""
    if shaping not in _SHAPINGS:
        raise ValueError(f"shaping must be one of {', '.join(_SHAPINGS)}, got {shaping!r}")


def checked_losses(losses: torch.Tensor, groups: int) -> torch.Tensor:
    """What an objective gave, as float32 on the CPU. Raises ValueError unless it is [groups]."""
    if not isinstance(losses, torch.Tensor) or losses.shape != (groups,):
        got = list(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ValueError(f"objective must give a tensor [{groups}], one loss for each group, got {got}")
    return losses.detach().to("cpu", torch.float32)


def shaped(losses: torch.Tensor, shaping: str) -> torch.Tensor:
    """Losses [G] by which the directions are weighed, float64.

    "standardise" takes off their mean and divides by their standard deviation, as "Evolution Strategies at
    Scale" (arXiv 2509.24372) does with the rewards of language models. "rank" puts evenly spaced numbers from
    -0.5 to 0.5 in their place, as evolution strategies for reinforcement learning do (arXiv 1703.03864);
    equal losses share the mean of their ranks. Equal losses alone become zeros, and what is not finite stays.
    """
    losses = losses.double()
    return _SHAPINGS[shaping](losses) if bool(losses.isfinite().all()) else losses


def _standardised(losses: torch.Tensor) -> torch.Tensor:
    centred = losses - losses.mean()
    spread = centred.square().mean().sqrt()
    equal = bool((losses == losses[0]).all())
    return torch.zeros_like(losses) if equal or not spread > 0 else centred / spread


def _ranked(losses: torch.Tensor) -> torch.Tensor:
    below = (losses[None, :] < losses[:, None]).sum(dim=1)
    same = (losses[None, :] == losses[:, None]).sum(dim=1)
    ranks = below + (same - 1) / 2
    return ranks.double() / max(1, len(losses) - 1) - 0.5


_SHAPINGS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda losses: losses,
    "standardise": _standardised,
    "rank": _ranked,
}
