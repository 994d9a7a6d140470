"""What `mobizo chat` does: let a model, with an adapter or without, take part in a conversation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedModel

from mobizo_kernels.cli.generate import adapted, sampling_of
from mobizo_kernels.cli.task_settings import as_json
from mobizo_kernels.cli.writing_settings import ChatSettings
from mobizo_kernels.data import ChatEncoder
from mobizo_kernels.errors import InputError, blame_input, refuse_half_characters
from mobizo_kernels.generation import TextGenerator
from mobizo_kernels.models.limits import positions
from mobizo_kernels.training.writing import text_of

_log = logging.getLogger(__name__)


def chat(settings: ChatSettings, questions: Iterable[str], say: Callable[[str], object]) -> dict[str, Any]:
    """Answer each question, with all that was said before it in mind. Where the model has no room for that,
    the oldest questions and their answers are forgotten. A question that cannot be asked is left out, with a
    warning.

    Args:
        settings: the model, and how it writes.
        questions: lines; those of white space alone are passed over.
        say: takes each answer.

    Returns:
        The answers, and the settings.

    Raises:
        InputError: something the user gave does not exist or does not fit.
    """
    sampling = sampling_of(settings)
    model, tokenizer = adapted(settings)
    encoder = ChatEncoder(tokenizer)
    with blame_input("model"):
        generator = TextGenerator(model, encoder.end_tokens)
    system = (("system", settings.system),) if settings.system else ()
    said: list[tuple[str, str]] = []
    answers: list[str] = []
    for question in questions:
        if not question.strip():
            continue
        asked = ("user", question.strip())
        try:
            with blame_input("question"):
                refuse_half_characters(question)
            _check_room(encoder.prompt((*system, asked)), model, settings.max_new_tokens)
        except InputError as error:
            _log.warning("%s; it is left out", error)
            continue
        said.append(asked)
        prompt = encoder.prompt((*system, *said))
        while not _fits(prompt, model, settings.max_new_tokens):
            _log.warning("the model has no more room: the oldest question and its answer are forgotten")
            del said[:2]
            prompt = encoder.prompt((*system, *said))
        ((tokens,),) = generator([prompt], sampling)
        answer = text_of(tokenizer, tokens)
        say(answer)
        answers.append(answer)
        if answer:
            said.append(("assistant", answer))
        else:  # which no chat template can take
            said.pop()
    return {"answers": answers, "settings": as_json(settings)}


def _check_room(prompt: list[int], model: PreTrainedModel, new_tokens: int) -> None:
    """Raise InputError for a question that has no room, alone."""
    if not _fits(prompt, model, new_tokens):
        raise InputError(
            f"question: the model has {positions(model.config)} positions, expected {new_tokens} of them for "
            f"an answer, got {len(prompt)} tokens"
        )


def _fits(prompt: list[int], model: PreTrainedModel, new_tokens: int) -> bool:
    most = positions(model.config)
    return most is None or len(prompt) + new_tokens <= most
