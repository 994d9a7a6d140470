"""Bring model, conversations and chat template together and score held-out answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mobizo_kernels.cli.memory import peak_rss_mb, reset_peak_rss
from mobizo_kernels.cli.quality import Outcome
from mobizo_kernels.cli.task_settings import EvalSettings, TaskSettings, as_json
from mobizo_kernels.data import (
    ChatEncoder,
    Conversation,
    ConversationSplits,
    EncodedExample,
    load_conversations,
)
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.generation import Sampling, TextGenerator
from mobizo_kernels.lora import load_adapter
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models import check_rows, load_model, quantize_base
from mobizo_kernels.models.limits import positions
from mobizo_kernels.training import ScoredAnswers, score_answers, write_answers
from mobizo_kernels.training.text_metrics import METRICS


@dataclass(frozen=True)
class AnswerTask:
    """A loaded model with the conversations that it is to go on with.

    Attributes:
        splits: of the conversations.
        settings: that they were loaded by.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: ChatEncoder
    splits: ConversationSplits
    settings: TaskSettings

    @property
    def pad_token(self) -> int:
        """Fills up rows."""
        return self.tokenizer.pad_token_id

    def encode(self, rows: Sequence[Conversation]) -> list[EncodedExample]:
        """A row for each answer. Raises InputError as the encoder does, or if the model has no room."""
        examples = self.encoder.encode(rows, self.settings.answers)
        check_rows(self.model.config, [example.input_ids for example in examples])
        most, new = positions(self.model.config), self.settings.max_new_tokens
        longest = max((len(example.input_ids) - example.targets for example in examples), default=0)
        if most is not None and longest + new > most:
            raise InputError(
                f"max_new_tokens: the model has {most} positions and the longest prompt {longest} tokens, "
                f"got {new}"
            )
        return examples

    def outcome(self, scoring: LabelledLoss, rows: Sequence[EncodedExample]) -> Outcome:
        """Loss and perplexity of the answers of rows, and how good those are that the model writes.

        Raises:
            InputError: a loss is not finite.
        """
        found = score_answers(scoring, rows, self.pad_token)
        sampling = Sampling(self.settings.max_new_tokens)
        generator = TextGenerator(self.model, self.encoder.end_tokens)
        written = write_answers(generator, self.tokenizer, rows, sampling)
        metrics: dict[str, float | None] = {name: written.mean(name) for name in METRICS}
        return Outcome({**answer_quality(found), **metrics}, len(rows), written.answers)


def load_answers(settings: TaskSettings) -> AnswerTask:
    """Load everything a run needs, the cheap things first.

    Raises:
        InputError: any of the settings names something that does not exist or does not fit.
    """
    for name, value, default in (
        ("text_column", settings.text_column, "text"),
        ("label_column", settings.label_column, "label"),
    ):
        if value != default:
            raise InputError(f"{name}: free answers are read from 'response' or 'messages', got {value!r}")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    splits = load_conversations(settings.data)
    model, tokenizer = load_model(settings.model, settings.weights)
    return AnswerTask(model, tokenizer, ChatEncoder(tokenizer, settings.max_length), splits, settings)


def answer_quality(scored: ScoredAnswers) -> dict[str, float | None]:
    """loss and perplexity for each token of held-out answers. Raises InputError if they are not finite."""
    if not np.isfinite(scored.sums).all():
        raise InputError("model: its losses are not finite; a --dtype of wider range may help")
    return {"loss": scored.loss, "perplexity": scored.perplexity}


def evaluate_answers(settings: EvalSettings) -> dict[str, Any]:
    """`mobizo_kernels.cli.evaluate.evaluate` where answers are free. Returns and raises what that does."""
    task = load_answers(settings)
    with blame_input("quantization"):
        quantize_base(task.model, settings.quantization)
    if settings.adapter is not None:
        with blame_input("adapter"):
            load_adapter(task.model, settings.adapter)
    with blame_input("model"):
        loss = LabelledLoss(task.model)
    examples = task.encode(task.splits.test[: settings.eval_rows])
    reset_peak_rss()
    found = task.outcome(loss, examples)
    return {
        **found.quality,
        "rows": found.rows,
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "settings": as_json(settings),
    }
