"""Chat templates taken apart: what comes out of the pieces, here and natively, is what the template makes."""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, QWEN3, SPECIAL, TEMPLATES
from programs import described, description_in, entries, program_bytes
from tiny_texts import chat_tokenizer
from transformers import PreTrainedTokenizerFast

from mobizo_kernels.errors import InputError
from mobizo_kernels.executorch import Trainer
from mobizo_kernels.executorch._library import load_trainer
from mobizo_kernels.executorch.chat_pieces import take_apart
from mobizo_kernels.executorch.description import parse_description
from mobizo_kernels.executorch.description_texts import ChatDescription, TextsDescription

_trainer = load_trainer()
ALPHABET = " \n\t.,'\"<>[]{}()|/\\&%#abcXYZ019äß漢😀\u00a0\u2028\u200b\x1f"


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    made = chat_tokenizer(template)
    made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": list(SPECIAL)})
    return made


def conversation(rng: random.Random, system: bool, begin: bool) -> list[tuple[str, str]]:
    def content() -> str:
        text = "".join(rng.choices(ALPHABET, k=rng.choice((1, 4, 40))))
        return text if text.strip() else text + "x\n"  # nobody says nothing

    turns = [(role, content()) for _ in range(rng.randint(1, 5)) for role in ("user", "assistant")]
    first = [("system", content())] if system and rng.random() < 0.5 else []
    return [*first, *(turns[:-1] if begin else turns)]


def native(pieces: ChatDescription, messages: list[tuple[str, str]], begin: bool) -> str:
    texts = TextsDescription(prompt=None, chat=pieces, no_chat=None)
    return _trainer.chat_text(json.dumps(asdict(texts)), messages, begin)


@pytest.mark.parametrize("name", TEMPLATES)
def test_pieces_and_template_say_the_same(name: str) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name])
    pieces = take_apart(tokenizer)
    assert (pieces.system is None) == (name in ("mistral", "gemma"))
    rng = random.Random(name)
    for _ in range(150):
        begin = rng.random() < 0.5
        messages = conversation(rng, pieces.system is not None, begin)
        turns = [{"role": role, "content": content} for role, content in messages]
        expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begin)
        assert pieces.rendered(messages, begin) == expected
        assert native(pieces, messages, begin) == expected


def test_what_a_template_adds_by_itself() -> None:
    pieces = take_apart(tokenizer_of(TEMPLATES["smollm2"]))
    assert "named SmolLM" in pieces.user.before and pieces.user_after_system is not None
    assert "SmolLM" not in pieces.user_after_system.before


def test_trimming() -> None:
    pieces = take_apart(tokenizer_of(TEMPLATES["llama2"]))
    assert (pieces.user.left, pieces.user.right) == ("all", "all")
    assert pieces.user_after_system is not None
    assert (pieces.user_after_system.left, pieces.user_after_system.right) == ("none", "all")
    assert take_apart(tokenizer_of(QWEN3)).answer.left == "newlines"


def test_texts_that_a_template_takes_for_more_than_text() -> None:
    assert take_apart(tokenizer_of(QWEN3)).refused == ("</think>",)
    shouting = CHATML.replace("message['content']", "message['content'].replace('LOUD', 'loud')")
    assert take_apart(tokenizer_of(shouting)).refused == ("LOUD",)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("message['content']", "message['content'] | upper"), "has the content of user not"),
        (CHATML + "{{ messages | length }}", "is no sequence of fixed texts and contents, see .user: "),
        (CHATML + "{{ strftime_now('%d') }}", "says what day it is"),
        (CHATML.replace("message['content']", "message['content'].lstrip('\n ')"), "white space"),
        (CHATML.replace("message['content']", "message['content'] * 2"), "has the content of user not once"),
        ("{% for message in messages %}{{ message.content }}{% endfor %}{{ 1 // 0 }}", "does not take"),
        ("{% broken", "does not take it"),
    ],
)
def test_templates_that_are_refused(template: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        take_apart(tokenizer_of(template))


def test_no_template() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        take_apart(tokenizer)


TURN = {"before": "<u>", "left": "none", "right": "all"}
CHAT = {
    "system": None,
    "user": TURN,
    "user_after_system": None,
    **dict.fromkeys(("user_after_answer", "earlier_answer", "answer"), TURN),
    "generation_prompt": "<a>",
    "end": "</a>",
    "special": ["</s>"],
    "end_tokens": [2],
    "refused": [],
}
PROMPT = {"template": "{text} It", "labels": ["0", "1"], "words": [" no", " yes"]}


def texts(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return entries(tokenizer="f", texts={"prompt": PROMPT, "chat": CHAT, "no_chat": None, **changes})


def test_a_program_with_texts(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(described(program, texts()))
    found = Trainer(path).description
    assert found.texts is not None and found.texts.chat is not None and found.texts.prompt is not None
    assert found.texts.prompt.words == (" no", " yes") and found.texts.chat.user.right == "all"
    assert parse_description(found.text) == found


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (entries(texts=[]), "texts: expected an object, got a list"),
        (texts(no_chat="why"), "texts: expected one of chat and no_chat, and null for the other"),
        (texts(chat=None), "texts: expected one of chat and no_chat, and null for the other"),
        (texts(more=1), "texts: 'more' is unknown"),
        (texts(prompt=5), "texts: prompt: expected an object, got a whole number"),
        (texts(prompt={**PROMPT, "words": [" no"]}), "texts: prompt: expected a word for each of 2 labels"),
        (texts(prompt={**PROMPT, "labels": ["0", "0"]}), "texts: prompt: labels must be different"),
        (texts(prompt={**PROMPT, "words": ["", "a"]}), "texts: prompt: words must not be empty"),
        (texts(prompt={**PROMPT, "words": [1, 2]}), "texts: prompt: words: expected a string, got a whole"),
        (
            texts(prompt={**PROMPT, "labels": ["a", "b", "c"], "words": ["a", "b", "c"]}),
            "texts: prompt: expected 2 words, one for each of candidate_tokens, got 3",
        ),
        (
            texts(chat={**CHAT, "system": TURN}),
            "texts: chat: system and user_after_system must be both given",
        ),
        (texts(chat={**CHAT, "user": None}), "texts: chat: user: expected an object, got null"),
        (texts(chat={**CHAT, "user": {**TURN, "left": "x"}}), "texts: chat: user: left must be one of none,"),
        (texts(chat={**CHAT, "answer": {"before": ""}}), "texts: chat: answer: 'left' is missing"),
        (texts(chat={**CHAT, "end_tokens": []}), "texts: chat: end_tokens must be at least 1"),
        (texts(chat={**CHAT, "end_tokens": [-1]}), "texts: chat: end_tokens must be from 0, got -1"),
        (texts(chat={**CHAT, "special": [""]}), "texts: chat: special must not be empty texts"),
        (texts(chat={**CHAT, "refused": [None]}), "texts: chat: refused: expected a string, got null"),
        (lambda d: (texts()(d), d.update(tokenizer=None)), "texts needs tokenizer"),
    ],
)
def test_texts_that_contradict_themselves(edit: Any, sentence: str, program: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(described(program, edit))
    with pytest.raises(ValueError) as native_error:
        Trainer(path)
    with pytest.raises(ValueError) as here:
        parse_description(description_in(program_bytes(path)))
    assert str(here.value).startswith(sentence)
    assert str(native_error.value) == f"{path}: description: {here.value}"


def test_white_space_and_what_is_invisible() -> None:
    for code in [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]:
        character = chr(code)
        assert (_trainer.stripped(character) == "") == character.isspace(), hex(code)
        category = unicodedata.category(character)
        if category != "Cn":  # a later version of Unicode may have it
            assert _trainer.is_invisible(code) == (category in ("Cc", "Cf", "Zs", "Zl", "Zp")), hex(code)
            assert _trainer.quoted(character) == repr(character), hex(code)


def test_quotes_and_numbers() -> None:
    for text in ("it's", 'say "x"', 'it\'s "x"', "a\\b", "\n\r\t\x00\x7f\u200b\U000e0001", ""):
        assert _trainer.quoted(text) == repr(text)
    rng = random.Random(0)
    numbers = [rng.uniform(-1, 1) * 10 ** rng.randint(-320, 308) for _ in range(20000)]
    numbers += [0.0, -0.0, 1.0, 1e15, 1e16, 123456789.0, 1e-4, 1e-5, 5e-324, 1.7976931348623157e308, 0.1]
    for number in numbers:
        assert _trainer.float_text(number) == repr(number)
