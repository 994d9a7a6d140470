"""A run in torch up to its first step: the model wrapped, the rows in tokens, the steps laid out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mobizo_kernels.cli.answers import AnswerTask
from mobizo_kernels.cli.evaluate import Task
from mobizo_kernels.cli.results import ADAPTER_DIRECTORY
from mobizo_kernels.cli.settings import TrainSettings, estimator, update_rule
from mobizo_kernels.cli.targets import lora_config
from mobizo_kernels.cli.tuning import state_store, step_batches
from mobizo_kernels.data import ConversationSplits, EncodedExample, Splits
from mobizo_kernels.errors import blame_input
from mobizo_kernels.lora import save_adapter, wrap
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models import quantize_base
from mobizo_kernels.training.fit import Batch
from mobizo_kernels.zo import ZerothOrder


@dataclass(frozen=True)
class Prepared:
    """What both kinds of runs, on labels and on free answers, begin with.

    Attributes:
        pad_token: fills up rows.
        examples: to train on.
        batches: of each step.
        evaluation: scores the validation rows, and keeps the states of theirs that come round again.
        scoring: scores rows that come twice at most: theirs would take the room of the others.
    """

    model: PreTrainedModel
    pad_token: int
    examples: list[EncodedExample]
    validation: list[EncodedExample]
    test: list[EncodedExample]
    batches: Iterator[Batch]
    zo: ZerothOrder
    evaluation: LabelledLoss
    scoring: LabelledLoss

    def save(self, directory: Path) -> None:
        """Write the adapter as it is now to its place in the directory of a run's results."""
        save_adapter(self.model, directory / ADAPTER_DIRECTORY)


def prepare(
    task: Task | AnswerTask,
    splits: Splits | ConversationSplits,
    candidate_tokens: Sequence[int] | None,
    settings: TrainSettings,
) -> Prepared:
    """Wrap the model of a task and encode the rows of a run.

    Args:
        task: loaded by `settings`.
        splits: the rows of the run, no more.
        candidate_tokens: the words of the labels; None where answers are free.
        settings: of the run.

    Raises:
        InputError: something in `settings` does not fit the model or the rows.
    """
    with blame_input("quantization"):
        quantize_base(task.model, settings.quantization)
    rows: Any = splits
    examples, validation, test = map(task.encode, (rows.train, rows.validation, rows.test))
    batches = step_batches(examples, settings)
    config = lora_config(settings, task.model, task.encoder)
    with blame_input("settings"):
        wrap(task.model, config, seed=settings.seed)
        zo = ZerothOrder(
            task.model,
            estimator=estimator(settings),
            optimizer=update_rule(settings),
            run_seed=settings.seed,
            distribution=settings.distribution,
            candidate_tokens=candidate_tokens,
            store=state_store(settings, settings.steps * settings.step_rows > len(examples)),
        )
        evaluation = LabelledLoss(
            task.model,
            candidate_tokens=candidate_tokens,
            store=state_store(settings, len(validation) > 0),
        )
        scoring = LabelledLoss(task.model, candidate_tokens=candidate_tokens)
    model, pad_token = task.model, task.pad_token
    return Prepared(model, pad_token, examples, validation, test, batches, zo, evaluation, scoring)
