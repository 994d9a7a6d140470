"""Generation for many groups of rows: each group sees its own perturbed adapter, all see the same prompts.

What comes before the invocation tokens of Activated LoRA runs once, without adapters, and every group goes on
from its keys and values. Without them, or where a prompt lacks them, every group runs the whole prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mobizo_kernels.generation.cache import growing_cache
from mobizo_kernels.generation.sampling import Sampling
from mobizo_kernels.lora import adapter_of, invocation_starts, is_wrapped
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.float32_products import fast_float32_products
from mobizo_kernels.parameters import has_wrapped_parameters, parameter_directions


@dataclass
class _Rows:
    """G * B rows on their way, group after group.

    Attributes:
        cache: keys and values of all tokens so far.
        seen: bool [G * B, T], False where a token is padding.
        active: bool [G * B], whether the adapters act on the tokens to come; None for everywhere.
    """

    cache: Any
    seen: torch.Tensor
    active: torch.Tensor | None = field(default=None)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone."""
        self.cache.batch_select_indices(rows)
        self.seen = self.seen[rows]
        self.active = None if self.active is None else self.active[rows]


class TextGenerator:
    """Continues prompts.

    Args:
        model: a causal LM of transformers, wrapped or not, with a key-value cache.
        stop_tokens: each ends an answer, of which it is the last token.

    Raises:
        ValueError: as :class:`LabelledLoss` does, whose checks of the model these are.
    """

    def __init__(self, model: nn.Module, stop_tokens: Collection[int]) -> None:
        loss = LabelledLoss(model)
        self.model, self._head, self._stop_tokens = loss.model, loss.head, sorted(stop_tokens)

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, groups: int = 1
    ) -> list[list[list[int]]]:
        """The tokens that follow each prompt, in every group: answers[group][row].

        Several groups want the directions of the model in use, as a step of :class:`ZerothOrder` has them:
        group g is then written by the model that is perturbed for it. What is drawn at random is the same for
        a row in all groups.

        Args:
            prompts: B of them in tokens, none of them empty.
            sampling: how tokens are chosen, and how many at most.
            groups: G.

        Raises:
            ValueError: if there is no prompt, or an empty one.
        """
        if not prompts or not all(map(len, prompts)):
            raise ValueError("prompts must be at least one, each of at least one token")
        draws = torch.Generator("cpu").manual_seed(sampling.seed)
        rows, hidden = self._begin(prompts, groups)
        stop = torch.tensor(self._stop_tokens, dtype=torch.int64, device=self.model.device)
        answers: list[list[list[int]]] = [[[] for _ in prompts] for _ in range(groups)]
        going = torch.ones(groups, len(prompts), dtype=torch.bool)
        here = torch.arange(len(prompts))  # the prompts that are still in the batch
        for count in range(1, sampling.max_new_tokens + 1):
            uniforms = torch.rand(len(prompts), dtype=torch.float64, generator=draws)[here]
            logits = self._head.logits(hidden, rows.active).float()
            tokens = sampling.choose(logits.unflatten(0, (groups, -1)), uniforms)
            ended, chosen = torch.isin(tokens, stop).cpu(), tokens.tolist()
            for group, row in going[:, here].nonzero().tolist():
                answers[group][int(here[row])].append(chosen[group][row])
            going[:, here] &= ~ended
            left = going[:, here].any(dim=0)
            if not left.any() or count == sampling.max_new_tokens:
                break
            # Leaving rows out copies what is kept of the others: only where many are done.
            if 4 * int(left.sum()) <= 3 * len(left):
                kept = torch.arange(groups * len(here)).view(groups, -1)[:, left].flatten()
                rows.select(kept.to(tokens.device))
                tokens, here = tokens[:, left.to(tokens.device)], here[left]
            hidden = self._next(rows, tokens.reshape(-1, 1), None)
        return answers

    def _begin(self, prompts: Sequence[Sequence[int]], groups: int) -> tuple[_Rows, torch.Tensor]:
        """The prompts in every group, and the last hidden state of each, [G * B, H]."""
        starts = [0] * len(prompts)
        invoked = None
        tokens = adapter_of(self.model).config.alora_invocation_tokens if is_wrapped(self.model) else None
        if tokens is not None:
            found = [int(invocation_starts(torch.tensor([list(row)]), tokens)) for row in prompts]
            # The adapters of a prompt without the invocation are off, as in PEFT.
            starts = [
                start if start >= 0 else len(row) - 1 for start, row in zip(found, prompts, strict=True)
            ]
            if min(found) < 0:
                invoked = torch.tensor([start >= 0 for start in found], device=self.model.device)
        rows = _Rows(
            growing_cache(self.model.config),
            torch.zeros(len(prompts), 0, dtype=torch.bool, device=self.model.device),
        )
        if any(starts):
            ids, seen = self._padded([row[:start] for row, start in zip(prompts, starts, strict=True)])
            with self._acting(False):
                self._next(rows, ids, seen)
        rows.active = invoked
        if groups > 1:
            rows.select(torch.arange(len(prompts), device=self.model.device).repeat(groups))
        ids, seen = self._padded([row[start:] for row, start in zip(prompts, starts, strict=True)])
        return rows, self._next(rows, ids.repeat(groups, 1), seen.repeat(groups, 1))

    def _next(self, rows: _Rows, ids: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """Run tokens [rows, n], of which those that are not seen, bool [rows, n], are padding on the left,
        and give the hidden state of the last, [rows, H].
        """
        seen = torch.ones_like(ids, dtype=torch.bool) if seen is None else seen
        rows.seen = torch.cat([rows.seen, seen], dim=1)
        positions = (rows.seen.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if has_wrapped_parameters(self.model):
            parameter_directions(self.model).rows = len(ids)
        active = True if rows.active is None else rows.active[:, None].expand_as(ids)
        with self._acting(active), fast_float32_products(self.model):
            hidden: torch.Tensor = self.model.base_model(
                input_ids=ids,
                attention_mask=None if bool(rows.seen.all()) else rows.seen.long(),
                position_ids=positions,
                past_key_values=rows.cache,
                use_cache=True,
            ).last_hidden_state
        return hidden[:, -1]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of several lengths, padded on the left, int64 [B, n], and where none is padding, bool."""
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.int64, device="cpu")
        seen = torch.zeros(len(rows), width, dtype=torch.bool, device="cpu")
        for row, tokens in enumerate(rows):
            first = width - len(tokens)
            ids[row, first:] = torch.tensor(list(tokens), dtype=torch.int64)
            seen[row, first:] = True
        return ids.to(self.model.device), seen.to(self.model.device)

    @contextmanager
    def _acting(self, active: torch.Tensor | bool) -> Iterator[None]:
        """Where the adapters act; what was said before, outside of this block, counts."""
        directions = adapter_of(self.model).directions if is_wrapped(self.model) else None
        if directions is None or directions.active is not None:
            yield
            return
        with directions.acting(active):
            yield
