"""The engine "executorch" where answers are free text: what its program is made for, and how it is scored."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from mobizo_kernels.cli.quality import Outcome
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.data import EncodedExample, TokenizedDataset
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.models import load_config
from mobizo_kernels.models.limits import positions
from mobizo_kernels.training.text_metrics import METRICS
from mobizo_kernels.training.writing import WrittenAnswers, text_of

if TYPE_CHECKING:
    from mobizo_kernels.executorch import Description, Trainer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnswerSizes:
    """What a program needs for rows with free answers.

    Attributes:
        max_length: most tokens of a row.
        answer_tokens: most tokens of an answer, with the one that ends it.
        context: tokens of the longest prompt that is answered, and of an answer to it: one of the test rows
            or, where rewards are learned from, of any.
    """

    max_length: int
    answer_tokens: int
    context: int


def answer_sizes(dataset: TokenizedDataset, settings: TrainSettings) -> AnswerSizes:
    """Those of a data set. Raises InputError if the model has no room for its prompts and answers to them."""
    rows = [*dataset.train, *dataset.validation, *dataset.test]
    config = load_config(settings.model)
    most, new = None if config is None else positions(config), settings.max_new_tokens
    longest = max(map(_prompt_length, rows))
    if most is not None and longest + new > most:
        raise InputError(
            f"max_new_tokens: the model has {most} positions and the longest prompt {longest} tokens, got "
            f"{new}"
        )
    answered = dataset.test if settings.objective == "cross-entropy" else rows
    return AnswerSizes(
        max_length=max(len(row.input_ids) for row in rows),
        answer_tokens=max(row.targets for row in rows),
        context=max(map(_prompt_length, answered)) + new,
    )


def check_context(program: Path, description: Description, sizes: AnswerSizes) -> None:
    """Raise InputError if a program that writes has no room for the answers to the test rows."""
    generation = description.generation
    if generation is None:
        _log.warning(
            "%s was exported without --context: there is a perplexity, but no answer to be scored", program
        )
    elif generation.context < sizes.context:
        raise InputError(
            f"max_new_tokens: {program} was exported for a context of {generation.context} tokens, and the "
            f"longest prompt and its answer take {sizes.context}"
        )


def answers_outcome(
    trainer: Trainer,
    path: Path,
    rows: Sequence[EncodedExample],
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
) -> Outcome:
    """Loss and perplexity of the answers of test rows, and how good those are that the program writes.

    Args:
        trainer: of the program; one that does not write has no exact match, F1 or ROUGE-L.
        path: of the data set.
        rows: the test rows in it.
        tokenizer: of the model.
        max_new_tokens: most tokens of an answer.

    Raises:
        InputError: a loss is not finite, or the data set does not fit the program.
    """
    with blame_input("data"):
        loss = trainer.evaluate(path, split="test", scores=False).loss
    if not math.isfinite(loss):
        raise InputError("model: its losses are not finite")
    quality: dict[str, float | None] = {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
    }
    if trainer.description.generation is None:
        return Outcome({**quality, **dict.fromkeys(METRICS)}, len(rows), [])
    answers, references = [], []
    for row in rows:
        found = trainer.generate(row.input_ids[: -row.targets], max_new_tokens=max_new_tokens)
        answers.append(text_of(tokenizer, found.tokens))
        references.append(text_of(tokenizer, row.input_ids[-row.targets :]))
    written = WrittenAnswers(answers, references)
    return Outcome({**quality, **{name: written.mean(name) for name in METRICS}}, len(rows), answers)


def _prompt_length(row: EncodedExample) -> int:
    return len(row.input_ids) - row.targets
