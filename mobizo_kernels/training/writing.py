"""Answers that a model writes to held-out rows, and how good they are beside those of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mobizo_kernels.data import EncodedExample, evaluation_batches
from mobizo_kernels.generation import Sampling, TextGenerator
from mobizo_kernels.training.text_metrics import METRICS

MOST_TOKENS = 8192
"""Of the prompts that are continued at a time, padding included."""


@dataclass(frozen=True)
class WrittenAnswers:
    """Answers beside their references, [n] each."""

    answers: list[str]
    references: list[str]

    def mean(self, metric: str) -> float:
        """Of a metric in :data:`METRICS`."""
        score = METRICS[metric]
        pairs = zip(self.answers, self.references, strict=True)
        return sum(score(answer, reference) for answer, reference in pairs) / len(self.answers)


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Tokens as text, without special ones and white space around it."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()


def write_answers(
    generator: TextGenerator,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedExample],
    sampling: Sampling,
) -> WrittenAnswers:
    """Let the model answer the prompts of rows, which are continued in batches of like length.

    Args:
        generator: of the model.
        tokenizer: its tokenizer.
        rows: n of them, at least one, with answers.
        sampling: how tokens are chosen.
    """
    answers = [""] * len(rows)
    for batch in evaluation_batches(rows, MOST_TOKENS):
        prompts = [rows[row].input_ids[: -rows[row].targets] for row in batch]
        for row, tokens in zip(batch, generator(prompts, sampling)[0], strict=True):
            answers[row] = text_of(tokenizer, tokens)
    return WrittenAnswers(answers, [text_of(tokenizer, row.input_ids[-row.targets :]) for row in rows])
