"""Texts on a device: the native trainer makes the data set that `mobizo tokenize` makes, byte for byte, and
refuses what it refuses, in the same words.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from chat_templates import SPECIAL, TEMPLATES
from texts import any_text, description_of, native_bytes, python_bytes, save_definition, write_rows
from tiny_texts import TEMPLATE, WORDS, chat_tokenizer, questions, reviews, save_model, tokenizer, write_csv
from tokenizers import processors
from tokenizers_of_kinds import CORPUS, KINDS, trained
from transformers import PreTrainedTokenizerFast

from mobizo_kernels.data import (
    ANSWER_TASKS,
    TASKS,
    PromptEncoder,
    load_conversations,
    read_dataset,
    tokenizer_definition,
    tokenizer_fingerprint,
)
from mobizo_kernels.data.datasets import split
from mobizo_kernels.data.files import read_file
from mobizo_kernels.errors import InputError
from mobizo_kernels.executorch._library import load_trainer
from mobizo_kernels.models import SMOLLM2, load_tokenizer

native = load_trainer()
PROMPT = {"template": TEMPLATE, "verbalizer": json.dumps(WORDS)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny tokenizer; `tokenizer.json` in it is its definition."""
    directory = save_model(tmp_path_factory.mktemp("texts") / "model")
    return directory


def skip_without_regex(kind: str) -> None:
    if not native.HAS_REGEX and kind in ("llama3", "qwen2", "gpt4o", "words"):
        pytest.skip("built without PCRE2")


def same(model: Path, data: Path, tmp_path: Path, description: str, python: Any, **options: Any) -> bytes:
    """The bytes of both sides, which are equal."""
    definition = save_definition(tmp_path / "t.json", PreTrainedTokenizerFast.from_pretrained(model))
    expected = python_bytes(model, data, tmp_path / "data.safetensors", **python, **options)
    assert native_bytes(data, description, definition, **options) == expected
    return expected


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("seed", [0, 7, -5, 2**40, 2**64 - 3, -(2**63)])
def test_labelled_texts(kind: str, seed: int, model: Path, tmp_path: Path) -> None:
    rows = reviews()
    if kind == "csv":
        data = write_csv(tmp_path / "data.csv", rows)
    else:
        data = write_rows(tmp_path / "data.jsonl", [{"text": e.text, "label": int(e.label)} for e in rows])
    description = description_of(tokenizer(), TEMPLATE, WORDS, 12)
    same(model, data, tmp_path, description, {**PROMPT, "max_length": 12}, seed=seed, train_rows=60)


@pytest.mark.parametrize("max_length", [14, 17, 40])
def test_any_texts_and_columns(max_length: int, model: Path, tmp_path: Path) -> None:
    template = "{title}: {text}\nIt was"
    rng = random.Random(max_length)
    rows = [{"text": any_text(rng), "label": rng.choice("01"), "title": rng.choice("ab")} for _ in range(400)]
    data = write_rows(tmp_path / "data.jsonl", rows)
    python = {"template": template, "verbalizer": PROMPT["verbalizer"], "max_length": max_length}
    description = description_of(tokenizer(), template, WORDS, max_length)
    same(model, data, tmp_path, description, python)


@pytest.mark.parametrize("trims", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_truncation_by_tokenizers_of_kinds(kind: str, trims: bool, tmp_path: Path) -> None:
    """The seam between template and text, spaces at it, and characters of several tokens."""
    library = trained(kind)
    steps = [processors.ByteLevel(trim_offsets=True)] if trims else []
    steps.append(processors.TemplateProcessing("<s> $A", "<s> $A $B:1", [("<s>", 1)]))
    library.post_processor = processors.Sequence(steps)
    made = PreTrainedTokenizerFast(tokenizer_object=library)
    template, words = "Say: {text}\nA:", {"0": "0", "1": "1"} if kind != "letters" else {"0": "a", "1": "o"}
    definition = save_definition(tmp_path / "t.json", made)
    skip_without_regex(kind)
    encoder = PromptEncoder(made, template, words, 24)
    rng = random.Random(kind)
    rows = [{"text": any_text(rng) + rng.choice(CORPUS), "label": rng.choice("01")} for _ in range(60)]
    data = write_rows(tmp_path / "data.jsonl", rows)
    description = description_of(made, template, words, 24)
    content = native_bytes(data, description, definition, batch_size=1, steps=1)
    (tmp_path / "data.safetensors").write_bytes(content)
    found, splits = read_dataset(tmp_path / "data.safetensors"), split(read_file(data, "text", "label"))
    assert found.train == encoder.encode(splits.train)
    assert found.test == encoder.encode(splits.test)


def test_a_thousand_conversations_with_one_opening(tmp_path: Path) -> None:
    made = chat_tokenizer()
    model = save_model(tmp_path / "model", vocab_size=len(made))
    made.save_pretrained(model)
    rows = [
        [("user", "Hi"), ("assistant", "Hello"), ("user", f"How {n // 2}?"), ("assistant", str(n))]
        for n in range(1000)
    ]
    said = [{"messages": [{"role": r, "content": text} for r, text in row]} for row in rows]
    data = write_rows(tmp_path / "chat.jsonl", said)
    description, most = description_of(made, targets=9), {"validation_rows": 1000, "eval_rows": 1000}
    content = same(model, data, tmp_path, description, {"max_length": 64}, answers="last", **most)
    (tmp_path / "data.safetensors").write_bytes(content)
    found = read_dataset(tmp_path / "data.safetensors")
    sizes = [len(part) for part in (found.train, found.validation, found.test)]
    assert sizes == pytest.approx([700, 100, 200], abs=1)


@pytest.mark.parametrize("name", ["smollm2", "qwen3", "llama3", "llama2", "gemma", "zephyr"])
@pytest.mark.parametrize("answers", ["all", "last"])
def test_conversations(name: str, answers: str, tmp_path: Path) -> None:
    made = chat_tokenizer(TEMPLATES[name])
    made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": list(SPECIAL)})
    model = save_model(tmp_path / "model", vocab_size=len(made), max_position_embeddings=4096)
    made.save_pretrained(model)
    rng, rows = random.Random(name), list[dict[str, Any]](questions())
    for number in range(80):  # half of them begin alike
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}] * (number % 2)
        turns += [
            {"role": role, "content": f"{number // 4} {any_text(rng)}".replace("<|end|>", "")}
            for _ in range(rng.randint(1, 3))
            for role in ("user", "assistant")
        ]
        system = [{"role": "system", "content": "Be brief."}] if name != "gemma" and number % 3 == 0 else []
        rows.append({"messages": [*system, *turns]})
    data = write_rows(tmp_path / "chat.jsonl", rows)
    description = description_of(made, max_length=4000, targets=2000)
    same(model, data, tmp_path, description, {"max_length": 4000}, answers=answers)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"text": f"t{i}", "label": "0"} for i in range(9)],
            "expected at least two labels, got 1 ('0')",
        ),
        ([{"text": f"t{i}", "label": str(i)} for i in range(3)], "to test), got 1 of '0'"),
        (
            [{"text": f"t{i}", "label": "abc"[i % 3]} for i in range(30)],
            "each label of the data ('a', 'b',",
        ),
        ([{"text": f"t{i}", "label": "01"[i % 2]} for i in range(6)], "batch_size: expected 1 to"),
    ],
)
def test_splits_that_cannot_be_made(rows: Any, sentence: str, model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data.jsonl", rows)
    definition = save_definition(tmp_path / "t.json", tokenizer())
    description = description_of(tokenizer(), TEMPLATE, WORDS)
    with pytest.raises(ValueError) as there:
        native_bytes(data, description, definition)
    with pytest.raises(InputError) as here:
        python_bytes(model, data, tmp_path / "out.safetensors", **PROMPT)
    assert sentence in str(here.value)
    assert str(there.value) == str(here.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"prompt": "say <|end|> now", "response": "no"},
            "the special token '<|end|>' in 'say <|end|> now'",
        ),
        ({"prompt": "a " * 300, "response": "no"}, "of its answer, and 64 fit (--max-length)"),
    ],
)
def test_conversations_that_are_refused(row: Any, sentence: str, tmp_path: Path) -> None:
    made = chat_tokenizer()
    model = save_model(tmp_path / "model", vocab_size=len(made))
    made.save_pretrained(model)
    data = write_rows(tmp_path / "chat.jsonl", [*questions(), row])
    definition = save_definition(tmp_path / "t.json", made)
    with pytest.raises(ValueError) as there:
        native_bytes(data, description_of(made, targets=16), definition)
    with pytest.raises(InputError) as here:
        python_bytes(model, data, tmp_path / "out.safetensors", max_length=64)
    assert sentence in str(here.value) and "line 41" in str(here.value)
    assert str(there.value) == str(here.value)


def test_answers_that_do_not_fit_the_program(tmp_path: Path) -> None:
    made = chat_tokenizer()
    data = write_rows(tmp_path / "chat.jsonl", [*questions(), {"prompt": "x", "response": "film " * 9}])
    definition = save_definition(tmp_path / "t.json", made)
    with pytest.raises(ValueError, match="line 41: expected at most 6 tokens to predict, got"):
        native_bytes(data, description_of(made, targets=6), definition)


def test_another_tokenizer(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", reviews())
    definition = save_definition(tmp_path / "t.json", chat_tokenizer())
    expected = "not the tokenizer of the program, whose fingerprint is"
    with pytest.raises(ValueError, match=expected):
        native_bytes(data, description_of(tokenizer(), TEMPLATE, WORDS), definition)


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprints(kind: str, tmp_path: Path) -> None:
    """Of what the library writes, and of an older form of it."""
    skip_without_regex(kind)
    made = PreTrainedTokenizerFast(tokenizer_object=trained(kind))
    path = save_definition(tmp_path / "t.json", made)
    assert native.tokenizer_fingerprint(str(path)) == tokenizer_fingerprint(made)
    old = json.loads(tokenizer_definition(made))
    old["padding"] = {"strategy": "BatchLongest"}
    if not any(" " in part for pair in old["model"]["merges"] for part in pair):
        old["model"]["merges"] = [" ".join(pair) for pair in old["model"]["merges"]]
    if old["model"]["ignore_merges"] is False:
        del old["model"]["ignore_merges"]
    path.write_text(json.dumps(old))
    assert native.tokenizer_fingerprint(str(path)) == tokenizer_fingerprint(made)


def test_draws() -> None:
    for seed in (0, 1, -1, 12345, 2**31, 2**32, 2**63 - 1, -(2**63)):
        for n, count in ((1, 1), (2, 2), (21, 5), (22, 5), (100, 6), (1000, 6), (5000, 1000), (3000, 3000)):
            rng, numbers = random.Random(seed), list(range(n))
            rng.shuffle(numbers)
            drawn = rng.sample(numbers, count)
            assert native.draw(seed, n, count) == (numbers, drawn, rng.randrange(n))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_named_tasks(name: str, tmp_path: Path) -> None:
    """All rows of a task as a file, by the tokenizer of SmolLM2."""
    task = TASKS[name]
    try:
        splits = task.read()
    except InputError as error:
        pytest.skip(str(error))
    rows = [*splits.train, *splits.validation, *splits.test]
    lines = [{"text": row.text, "label": row.label, **dict(row.columns)} for row in rows]
    data, made = write_rows(tmp_path / "data.jsonl", lines), load_tokenizer(SMOLLM2)
    definition = save_definition(tmp_path / "t.json", made)
    python = {"template": task.template, "verbalizer": json.dumps(dict(task.verbalizer)), "max_length": 128}
    options = {"validation_rows": 10**6, "eval_rows": 10**6, "batch_size": 8, "steps": 300}
    expected = python_bytes(Path(SMOLLM2), data, tmp_path / "out.safetensors", **python, **options)
    description = description_of(made, task.template, task.verbalizer, 128)
    assert native_bytes(data, description, definition, **options) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWER_TASKS)
def test_named_answer_tasks(name: str, tmp_path: Path) -> None:
    try:
        splits = load_conversations(name)
    except InputError as error:
        pytest.skip(str(error))
    rows = [*splits.train, *splits.validation, *splits.test]
    lines = [{"prompt": row.messages[0][1], "response": row.messages[1][1]} for row in rows]
    data, made = write_rows(tmp_path / "data.jsonl", lines), load_tokenizer(SMOLLM2)
    definition = save_definition(tmp_path / "t.json", made)
    options = {"validation_rows": 10**6, "eval_rows": 10**6, "max_length": 512}
    expected = python_bytes(Path(SMOLLM2), data, tmp_path / "out.safetensors", **options)
    description = description_of(made, max_length=512, targets=256)
    assert native_bytes(data, description, definition, **options) == expected
