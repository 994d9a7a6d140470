"""How the next token is chosen from its logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """What is written and how much of it. The filters are applied in the order of transformers' generate.

    Args:
        max_new_tokens: most tokens of an answer, the one that ends it included.
        temperature: divides the logits; 0 takes the likeliest token, whatever the rest says.
        top_k: sample from so many of the likeliest tokens; 0 for all.
        top_p: then from the fewest of the likeliest tokens that have this share of the probability.
        seed: of the random numbers.

    Raises:
        ValueError: if one is out of range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), got {self.seed}")

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of each token, float64 [..., vocabulary], from logits of that shape; temperature above 0."""
        logits = logits.double()
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature  # never infinite
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(dim=-1, stable=True)
            tail = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            tail[..., -1] = False
            logits = logits.masked_fill(torch.zeros_like(tail).scatter(-1, order, tail), -math.inf)
        return logits.softmax(dim=-1)

    def choose(self, logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """The next tokens, int64 [G, B].

        Args:
            logits: [G, B, vocabulary].
            uniforms: float64 [B] in [0, 1), the same for every group: groups whose probabilities are alike
                take the same token wherever they can.
        """
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        sums = self.probabilities(logits).cumsum(dim=-1)
        # Up to their last sum, which rounding may leave off 1: so no token of probability 0 is taken.
        wanted = (uniforms.to(sums.device) * sums[..., -1]).unsqueeze(-1)
        return torch.searchsorted(sums, wanted, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
