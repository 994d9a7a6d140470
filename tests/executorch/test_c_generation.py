"""Writing through mobizo.h: the tokens of the Python face, their texts, and conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import c_interface as c
import numpy as np
import pytest
from c_process import apart
from tiny_texts import TEMPLATE, WORDS, reviews, save_chat_model, write_csv
from tokenizers_of_kinds import saved
from transformers import AutoTokenizer

from mobizo_kernels.cli import main
from mobizo_kernels.data import ChatEncoder
from mobizo_kernels.executorch import TextReward, Trainer, _trainer

CONTEXT = 96
MESSAGES = [("system", "Be short."), ("user", "The film is dull, part 3. How?")]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model with a chat template, and a program that writes."""
    model = save_chat_model(tmp_path_factory.mktemp("chat") / "model")
    program = model.parent / "program.pte"
    options = {
        "model": model, "out": program, "context": CONTEXT, "max-length": 18, "queries": 1, "batch-size": 1,
        "targets": "v_proj", "template": TEMPLATE, "verbalizer": json.dumps(WORDS),
    }  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main.run(["export", *(f"--{name}={value}" for name, value in options.items())])
    assert not ended.value.code
    return model, program


def moved(program: Path) -> Trainer:
    """With an adapter that is not zero."""
    trainer = Trainer(program)
    trainer.update(np.arange(1), np.float32([0.5]))
    return trainer


def test_tokens_are_those_of_python(chat_model: tuple[Path, Path], tmp_path: Path) -> None:
    _, program = chat_model
    trainer, adapter = moved(program), tmp_path / "adapter.safetensors"
    trainer.save_adapter(adapter)
    calls: list[dict[str, Any]] = [
        {"prompt": [3, 4, 5], "max_new_tokens": 7},
        {
            "prompt": [3, 4, 5, 6],
            "max_new_tokens": 5,
            "temperature": 0.8,
            "top_k": 9,
            "top_p": 0.9,
            "seed": -4,
        },
        {"prompt": [9] * (CONTEXT - 2)},
        {"prompt": [3, 4, 5], "max_new_tokens": 7, "stop_after": 2},
    ]
    expected = [
        trainer.generate(**{key: value for key, value in call.items() if key != "stop_after"})
        for call in calls
    ]
    for call, found, wanted in zip(calls, apart(c.written, program, adapter, calls), expected, strict=True):
        stopped = call.get("stop_after")
        assert found["tokens"] == list(wanted.tokens)[:stopped]
        assert found["ended"] == ("caller" if stopped else wanted.ended)
        assert (found["reused"], found["prefilled"]) == (wanted.reused, wanted.prefilled)
        assert found["told"] == [(token, "") for token in found["tokens"]]


def flat(trainer: Trainer) -> list[float]:
    """Every LoRA-B, one after the other."""
    values = [value.ravel() for name, value in trainer.adapter().items() if ".lora_B." in name]
    return np.concatenate(values).tolist()


def test_answers_are_cancelled(chat_model: tuple[Path, Path], tmp_path: Path) -> None:
    """After a token, and between two chunks of a prompt; what is written then is as if they had not been."""
    _, program = chat_model
    trainer, adapter = moved(program), tmp_path / "adapter.safetensors"
    trainer.save_adapter(adapter)
    prompts, chunk = [[3, 4, 5], [9, 6, 7] * 30], 18
    ends, found = apart(c.cancelled_answers, program, adapter, prompts)
    assert ends == ["CANCELLED: cancelled after 2 tokens", "CANCELLED: cancelled after 0 tokens"]
    assert found[0]["reused"] in range(0, len(prompts[1]), chunk)
    for prompt, answer in zip(reversed(prompts), found, strict=True):
        assert answer["tokens"] == list(trainer.generate(prompt).tokens)


@pytest.fixture
def dataset(chat_model: tuple[Path, Path], tmp_path: Path) -> Path:
    model, program = chat_model
    texts, made = write_csv(tmp_path / "reviews.csv", reviews()), tmp_path / "reviews.safetensors"
    changes = {"steps": 4, "train_rows": 12, "validation_rows": 4, "test_rows": 4}
    apart(c.tokenized, program, texts, model / "tokenizer.json", [(str(made), changes)])
    return made


def test_a_run_by_rewards_is_that_of_python(
    chat_model: tuple[Path, Path], dataset: Path, tmp_path: Path
) -> None:
    model, program = chat_model
    path, seen = model / "tokenizer.json", list[tuple[str, list[str], str]]()

    def reward(prompt: str, answers: list[str], reference: str) -> list[float]:
        seen.append((prompt, answers, reference))
        return [c.answer_score(answer) for answer in answers]

    objective = TextReward(
        reward=reward, tokenizer=_trainer.NativeTokenizer(path), name="scores", max_new_tokens=6,
        temperature=0.7, seed=-3,
    )  # fmt: skip
    options: dict[str, Any] = {"steps": 4, "eval_every": 2, "lr": 0.05, "reward_shaping": "rank"}
    trainer, journals = Trainer(program), [tmp_path / "c.journal", tmp_path / "python.journal"]
    result = trainer.train(dataset, **options, objective=objective, journal=journals[1])
    arguments = program, dataset, path
    run, values, told = apart(c.rewarded, *arguments, 0, "", **options, journal=str(journals[0]))
    assert (run.end, told, values) == ("OK", seen, flat(trainer))
    assert journals[0].read_bytes() == journals[1].read_bytes()
    assert [v["loss"] for v in run.validations] == [v.loss for v in result.evaluations]
    options["eval_every"], options["keep"] = 0, "last"
    for how, made, end in (
        ("return", 2, "CANCELLED: cancelled by a reward"),
        (
            "cancel",
            3,
            "CANCELLED: cancelled after 3 steps",
        ),  # its last reward
        ("number", 2, "INVALID: the reward must give numbers that are finite in float32, got nan"),
    ):
        ended, values, _ = apart(c.rewarded, *arguments, 3, how, **options)
        assert (ended.end, len(ended.steps)) == (end, made)
        again = Trainer(program)
        again.replay(journals[1], until=made)
        assert values == flat(again)


def test_objectives_that_are_refused(chat_model: tuple[Path, Path], dataset: Path, tmp_path: Path) -> None:
    """Before the journal is made."""
    model, program = chat_model
    journal = tmp_path / "journal"
    changes: dict[str, dict[str, Any]] = {
        "objective.size must be at least 80, got 0: set it": {"size": 0},
        "objective.reward must not be NULL": {"reward": None},
        "objective.tokenizer must not be NULL": {"tokenizer": None},
        "tokenizer is no open tokenizer": {"tokenizer": 12345},
        "objective.name must not be NULL": {"name": None},
        "the name of an objective must not be empty": {"name": b""},
        "the name of an objective must be UTF-8": {"name": b"caf\xe9"},
        "max_new_tokens must be at least 1, got 0": {"max_new_tokens": 0},
        "row 0 of train: the prompt has": {"max_new_tokens": 2**63 - 1},
        "temperature must be at least 0 and finite, got nan": {"temperature": float("nan")},
        "top_p must be in (0, 1], got 0": {"top_p": 0.0},
    }
    ends = apart(
        c.refused_objectives, program, dataset, model / "tokenizer.json", journal, list(changes.values())
    )
    assert len(ends) == len(changes)
    for end, message in zip(ends, changes, strict=True):
        assert end.startswith(f"INVALID: {message}")
    assert not journal.exists()


def test_an_answer_comes_as_text(chat_model: tuple[Path, Path]) -> None:
    model, program = chat_model
    path = model / "tokenizer.json"
    found = apart(c.answered, program, path, MESSAGES, max_new_tokens=12)
    assert found["prompt"] == ChatEncoder(AutoTokenizer.from_pretrained(model)).prompt(MESSAGES)
    assert found["tokens"] == list(Trainer(program).generate(found["prompt"], max_new_tokens=12).tokens)
    text = "".join(part for _, part in found["told"])
    assert text == _trainer.NativeTokenizer(path).decode(found["tokens"])
    assert [token for token, _ in found["told"] if token >= 0] == found["tokens"]


def test_what_is_refused(chat_model: tuple[Path, Path], program: Path, tmp_path: Path) -> None:
    _, other = saved("llama2", tmp_path)
    alone, count, prompt, options, tokenizer, chat = apart(c.unwritten, chat_model[1], other)
    assert alone == "OK"
    assert count == "INVALID: count must be at least 1, got 0"
    assert prompt == "INVALID: prompt must not be NULL"
    assert options.startswith("INVALID: temperature must be")
    for refused in (tokenizer, chat):
        assert "not the tokenizer of the program, whose fingerprint is" in refused
    assert apart(c.unwritten, program, other)[0].startswith("INVALID: ")  # exported without a context


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([("tool", b"a")], "the prompt has the role 'tool' in message 1, expected 'user'"),
        ([("user", b"a"), ("user", b"b")], "has the role 'user' in message 2, expected 'assistant'"),
        ([("user", b"a"), ("system", b"b")], "has the role 'system' in message 2, expected 'assistant'"),
        ([("system", b"a")], "the prompt ends without a question of the user"),
        ([("user", b"a"), ("assistant", b"b")], "the prompt ends without a question of the user"),
        ([("user", b"a"), ("assistant", b" "), ("user", b"b")], "nothing to read in a message of assistant"),
        ([("user", b"a\xe3")], "the prompt is not UTF-8 at byte 1 of a message of user"),
        ([("user", b"a<|end|>")], "the prompt holds the special token '<|end|>' in 'a<|end|>'"),
    ],
)  # fmt: skip
def test_conversations_that_cannot_be(
    messages: list[tuple[str, bytes]], sentence: str, chat_model: tuple[Path, Path]
) -> None:
    model, program = chat_model
    (found,) = apart(c.unsaid, program, model / "tokenizer.json", [messages])
    assert found.startswith("INVALID: data: ") and found.endswith(sentence)
