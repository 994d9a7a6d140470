"""Objectives without a gradient: rewards of what the model writes, and the accuracy of its labels.

Each is an objective of :meth:`mobizo_kernels.zo.ZerothOrder.step`: a loss for each group, lower being better.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from mobizo_kernels.conventions import IGNORED
from mobizo_kernels.data import EncodedExample, evaluation_batches
from mobizo_kernels.errors import first_line
from mobizo_kernels.generation import Sampling, TextGenerator
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training.text_metrics import exact_match, f1, rouge_l
from mobizo_kernels.training.writing import MOST_TOKENS, text_of

Reward = Callable[[str, list[str], str], Sequence[float]]
"""`reward(prompt, answers, reference)` gives a number for each answer to one prompt, higher being better."""


class TextReward:
    """1 minus the mean reward of the answers that each group writes to the prompts of a batch.

    The prompt of a row is what comes before its first label, and the reference what is labelled. The reward
    sees them as text, the prompt with the special tokens of the chat template.

    Args:
        generator: of the model.
        tokenizer: of the model.
        reward: of the answers that all groups give to one prompt.
        sampling: how tokens are chosen. What is drawn at random depends on its seed and on the tokens of the
            batch, so a step that is made again sees the same.

    Raises:
        ValueError: if the reward cannot be called, or the tokenizer has no `decode`.
    """

    def __init__(
        self,
        generator: TextGenerator,
        tokenizer: PreTrainedTokenizerBase,
        reward: Reward,
        sampling: Sampling,
    ) -> None:
        check_reward(reward, tokenizer)
        self._generator, self._tokenizer = generator, tokenizer
        self._reward, self._sampling = reward, sampling

    def __call__(self, model: nn.Module, batch: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
        """The loss of each group, float64 [groups].

        Raises:
            ValueError: if the generator is of another model, a row has no label behind a prompt, or the
                reward gives something else than a number for each answer.
        """
        if model is not self._generator.model:
            raise ValueError("objective: its generator is of another model")
        prompts, references = _prompts_and_references(batch)
        sampling = self._sampling
        if sampling.temperature:
            content = json.dumps([prompts, sampling.seed]).encode()
            seed = int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")
            sampling = replace(sampling, seed=seed)
        return 1 - self.rewards(prompts, references, sampling, groups).mean(dim=1)

    def score(self, rows: Sequence[EncodedExample]) -> RewardedAnswers:
        """Held-out rows, answered by the model as it is; at least one."""
        losses = np.zeros(len(rows))
        for batch in evaluation_batches(rows, MOST_TOKENS):
            prompts = [rows[row].input_ids[: -rows[row].targets] for row in batch]
            references = [rows[row].input_ids[-rows[row].targets :] for row in batch]
            losses[batch] = 1 - self.rewards(prompts, references, self._sampling)[0].numpy()
        return RewardedAnswers(losses)

    def rewards(
        self,
        prompts: Sequence[list[int]],
        references: Sequence[list[int]],
        sampling: Sampling,
        groups: int = 1,
    ) -> torch.Tensor:
        """Of the answer of each group to each prompt, float64 [groups, prompts]. Raises as a call does."""
        written = self._generator(prompts, sampling, groups)
        found = torch.zeros(groups, len(prompts), dtype=torch.float64)
        for row, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
            answers = [group[row] for group in written]
            given = rewards_of(self._reward, self._tokenizer, prompt, answers, reference)
            found[:, row] = torch.tensor(given, dtype=torch.float64)
        return found


def check_reward(reward: object, tokenizer: object) -> None:
    """Raise ValueError unless the one can be called, and the other decodes."""
    if not callable(reward):
        raise ValueError(f"reward must be a function, got {reward!r}")
    if not callable(getattr(tokenizer, "decode", None)):
        raise ValueError(f"tokenizer must be one that has decode(), got {tokenizer!r}")


def rewards_of(
    reward: Reward,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    reference: Sequence[int],
) -> list[float]:
    """What a reward gives for answers to one prompt, all in tokens. Raises RewardError."""
    texts = [text_of(tokenizer, answer) for answer in answers]
    asked = str(tokenizer.decode(list(prompt), skip_special_tokens=False))
    wanted = text_of(tokenizer, reference)
    try:
        given = [float(value) for value in reward(asked, texts, wanted)]
    except Exception as error:  # whatever a user's function does
        raise RewardError(f"the reward failed ({type(error).__name__}: {first_line(error)})") from error
    if len(given) != len(answers):
        raise RewardError(f"reward must give a number for each of {len(answers)} answers, got {len(given)}")
    if not torch.tensor(given, dtype=torch.float64).float().isfinite().all():
        raise RewardError(f"reward must give numbers that are finite in float32, got {given}")
    return given


class RewardError(ValueError):
    """A reward raised, or gave something else than a finite number for each answer."""


@dataclass(frozen=True)
class RewardedAnswers:
    """Held-out rows with the losses of the answers that a model wrote: 1 minus their rewards, float64 [n]."""

    losses: NDArray[np.float64]

    accuracy = None
    balanced_accuracy = None


class LabelError:
    """The share of labelled tokens to which each group prefers another: 1 minus the accuracy.

    Args:
        loss: of the model, with the words of the labels as its candidate tokens, if there are labels.
    """

    def __init__(self, loss: LabelledLoss) -> None:
        self._loss = loss

    def __call__(self, model: nn.Module, batch: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
        """The loss of each group, float32 [groups]. Raises ValueError as the loss does."""
        return self._loss.errors(batch, groups)


def json_answer(prompt: str, answers: list[str], reference: str) -> list[float]:
    """A rule of form: the answer is the JSON object {"answer": ...} of a text or a number, and nothing else.
    Part of the reward is given for parts of it: a brace at the beginning, the name, a brace at the end.
    """
    return [1.0 if _is_json_answer(answer) else _near_json(answer) for answer in answers]


def ten_words(prompt: str, answers: list[str], reference: str) -> list[float]:
    """A rule of form: the answer has one to ten words; 10 / n for n words more than that."""
    counts = [len(answer.split()) for answer in answers]
    return [min(1.0, 10 / count) if count else 0.0 for count in counts]


def _is_json_answer(answer: str) -> bool:
    try:
        pairs = json.loads(answer, object_pairs_hook=list, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return False
    if not (isinstance(pairs, list) and len(pairs) == 1 and isinstance(pairs[0], tuple)):
        return False
    name, value = pairs[0]
    return name == "answer" and isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _near_json(answer: str) -> float:
    return 0.2 * answer.startswith("{") + 0.4 * answer.startswith('{"answer":') + 0.2 * answer.endswith("}")


def of_metric(metric: Callable[[str, str], float]) -> Reward:
    """The reward that a metric of `mobizo_kernels.training.text_metrics` is."""
    return lambda prompt, answers, reference: [metric(answer, reference) for answer in answers]


REWARDS: Mapping[str, Reward] = {
    "exact-match": of_metric(exact_match),
    "f1": of_metric(f1),
    "rouge-l": of_metric(rouge_l),
    "json-answer": json_answer,
    "ten-words": ten_words,
}
"""Rewards by the names that ``--objective`` takes."""


def _prompts_and_references(batch: Mapping[str, torch.Tensor]) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens before the first label of each row, and those that are labelled."""
    ids, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
    mask = batch.get("attention_mask")
    seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.cpu() != 0
    prompts, references = [], []
    for row, (tokens, wanted, real) in enumerate(zip(ids, labels, seen, strict=True)):
        tokens, wanted = tokens[real], wanted[real].clone()
        wanted[:1] = IGNORED  # nothing comes before it
        at = (wanted != IGNORED).nonzero()
        if not len(at) or not int(at[0]):
            raise ValueError(f"batch: row {row} has no label behind a prompt")
        prompts.append(tokens[: int(at[0])].tolist())
        references.append(wanted[wanted != IGNORED].tolist())
    return prompts, references
