"""The softmax at the labelled tokens, over the vocabulary of a model or over a few label words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.conventions import IGNORED
from mobizo_kernels.lora import MPLoRALinear, held_head
from mobizo_kernels.parameters import is_bare, perturb_candidates


class LabelHead:
    """The LM head of a model, which may be restricted to a few tokens.

    Args:
        model: a causal LM of transformers.
        candidate_tokens: the tokens of the softmax; None for the whole vocabulary.

    Attributes:
        model: the one that is given.
        candidates: int64 [C] on the model's device, or None.

    Raises:
        ValueError: if the candidates are fewer than two, not distinct, or outside of the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, candidate_tokens: Sequence[int] | None = None) -> None:
        self.model = model
        head = model.get_output_embeddings()
        self._vocabulary: int = getattr(head, "out_features", model.config.get_text_config().vocab_size)
        self.candidates = None if candidate_tokens is None else _checked(model, candidate_tokens)

    def targets(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids as classes of the softmax, int64 [n].

        Raises:
            ValueError: if a token is not a candidate, or not in the vocabulary.
        """
        if self.candidates is None:
            outside = tokens[(tokens < 0) | (tokens >= self._vocabulary)]
            if len(outside):
                raise ValueError(
                    f"labels must be in [0, {self._vocabulary}), or {IGNORED} for none, got {int(outside[0])}"
                )
            return tokens
        match = tokens[:, None] == self.candidates.to(tokens.device)
        if not match.any(dim=1).all():
            strangers = sorted(set(tokens[~match.any(dim=1)].tolist()))
            raise ValueError(
                f"labels must be among the candidate tokens {self.candidates.tolist()}, got {strangers}"
            )
        return match.int().argmax(dim=1)

    def logits(self, hidden: torch.Tensor, active: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [n, H] -> logits [n, C] or [n, vocabulary] in the model's dtype; an adapter of the head acts
        where bool [n] says so.
        """
        head = self.model.get_output_embeddings()
        if active is None or not isinstance(head, MPLoRALinear):
            return self.finished(self.outputs(hidden))
        head.active = active
        try:
            return self.finished(self.outputs(hidden))
        finally:
            head.active = None

    def outputs(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the head itself gives, of the shape and type of :meth:`logits`."""
        head, candidates = self.model.get_output_embeddings(), self.candidates
        if candidates is None:
            return head(hidden)
        held = held_head(self.model)
        base = head if held is None else held.base_layer
        # Whoever replaced or hooked the head wants to be called.
        bare = is_bare(base) and is_bare(head)
        if bare and type(base) is nn.Linear and type(base.weight) is nn.Parameter:
            bias = None if base.bias is None else base.bias[candidates]
            out = F.linear(hidden, base.weight[candidates], bias)
            perturb_candidates(base, hidden, out, candidates)
            return out if held is None else held.added(out, hidden, candidates)
        return head(hidden)[:, candidates]

    def finished(self, outputs: torch.Tensor) -> torch.Tensor:
        """What the model makes of its head's outputs [n, C]."""
        return after_head(self.model, outputs)


def _checked(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    vocabulary = model.config.get_text_config().vocab_size
    if len(tokens) < 2 or len(set(tokens)) < len(tokens):
        raise ValueError(f"candidate_tokens must be at least 2 different token ids, got {list(tokens)}")
    if not all(0 <= token < vocabulary for token in tokens):
        raise ValueError(f"candidate_tokens must be in [0, {vocabulary}), got {list(tokens)}")
    return torch.tensor(list(tokens), dtype=torch.int64, device=model.device)


def after_head(model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
    """What some architectures do to the logits of their LM head, by the names in their configurations."""
    for factor in _values(model, "logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        logits = logits * factor
    for divisor in _values(model, "logits_scaling"):  # Granite
        logits = logits / divisor
    for cap in _soft_caps(model):
        logits = cap * torch.tanh(logits / cap)
    return logits


def logit_scale(model: PreTrainedModel) -> float:
    """The factor in :func:`after_head`."""
    divisors = math.prod(_values(model, "logits_scaling"))
    return float(math.prod(_values(model, "logit_scale", "lm_head_multiplier")) / divisors)


def soft_cap(model: PreTrainedModel) -> float | None:
    """The cap in :func:`after_head`, None if there is none. Raises ValueError if there are several."""
    caps = _soft_caps(model)
    if len(caps) > 1:
        raise ValueError(f"{type(model).__name__} caps its logits twice")
    return float(caps[0]) if caps else None


def _soft_caps(model: PreTrainedModel) -> list[Any]:  # Gemma, RecurrentGemma, xLSTM
    return _values(model, "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def _values(model: PreTrainedModel, *names: str) -> list[Any]:
    """What a configuration has under these names, but for zero and None."""
    config = model.config.get_text_config()
    return [value for name in names if (value := getattr(config, name, None))]
