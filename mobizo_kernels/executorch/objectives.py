"""What the native trainer can minimise in place of the cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Reward = Callable[[str, list[str], str], Sequence[float]]
"""`reward(prompt, answers, reference)` gives a number for each answer to one prompt, higher being better."""


@dataclass(frozen=True, kw_only=True)
class TextReward:
    """1 minus the mean reward of the answers that each group of a step writes to the prompts of a batch.

    The prompt of a row is what comes before its answer in the data set, which is the reference. The reward
    sees them as text, the prompt with the special tokens of the chat template. Random numbers depend on
    `seed`, the step and the row, and are the same for all groups. Held-out rows are scored alike, by the
    model as it is.

    Args:
        reward: of the answers that all groups give to one prompt.
        tokenizer: of the program: what has `decode(tokens, skip_special_tokens=...)`, as those of
            transformers.
        name: by which a journal tells the reward from others; a run goes on with one of the same name.
        max_new_tokens: most tokens of an answer, the one that ends it included.
        temperature: divides the logits; 0 takes the likeliest token, whatever the rest says.
        top_k: sample from so many of the likeliest tokens; 0 for all.
        top_p: then from the fewest of the likeliest tokens that have this share of the probability.
        seed: of the random numbers: any 64-bit integer.

    Raises:
        ValueError: if the reward cannot be called, or the tokenizer has no `decode`.
    """

    reward: Reward
    tokenizer: Any
    name: str = "reward"
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        from mobizo_kernels.training.objectives import check_reward  # transformers takes seconds to import

        check_reward(self.reward, self.tokenizer)

    @property
    def writing(self) -> dict[str, Any]:
        """How answers are written, as :meth:`~mobizo_kernels.executorch.Trainer.generate` takes it."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
        return {name: getattr(self, name) for name in names}

    def rewards(self, prompt: list[int], answers: list[list[int]], reference: list[int]) -> list[float]:
        """Of answers to one prompt, in tokens. Raises
        :class:`~mobizo_kernels.training.objectives.RewardError`.
        """
        from mobizo_kernels.training.objectives import rewards_of

        return rewards_of(self.reward, self.tokenizer, prompt, answers, reference)
