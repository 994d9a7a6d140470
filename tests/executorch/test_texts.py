"""Texts on a device: the native trainer makes the data set that `mobizo tokenize` makes, byte for byte, and
refuses what it refuses, in the same words.
"""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from chat_templates import SPECIAL, TEMPLATES
from texts import description_of, native_bytes, outcome, python_bytes, save_definition, write_rows
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
from mobizo_kernels.data.conversations import read_conversations
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


ALPHABET = "abc dé\u0301ß漢字😀👍🏽\n\t'\".,!?\u00a0\u3000\u2028 ▁Ġ<|end|>0123"


def any_text(rng: random.Random) -> str:
    words = rng.choices(["film ", "is great", "terrible", "dull.", "\n", *ALPHABET], k=rng.choice((1, 8, 60)))
    text = "".join(words)
    return text if text.strip() and not all(c.isspace() for c in text) else f"a{text}"


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


def native_examples(path: Path) -> Any:
    rows = native.read_examples(str(path), "text", "label", ["c"])
    return [(text, label, tuple(columns)) for text, label, columns in rows]


def python_examples(path: Path) -> Any:
    return [(e.text, e.label, e.columns) for e in read_file(path, "text", "label", ["c"])]


def agree(here: Any, there: Any, path: Path) -> str:
    """Both sides take the file alike, or refuse it in the same words but for what is no JSON."""
    (verdict, mine), (other, theirs) = outcome(here, path), outcome(there, path)
    assert verdict == other, (path.read_bytes(), mine, theirs)
    if verdict == "ok":
        assert mine == theirs
    else:
        theirs = theirs.replace(" or the name of a task", "")
        mine = mine.replace(" or the name of a task", "")
        if "is not JSON (" in mine:
            mine, theirs = mine.partition(" (")[0], theirs.partition(" (")[0]
        assert mine == theirs
    return verdict


CSV = [
    "a",
    "b",
    "c",
    "a b",
    "1",
    "x",
    "text",
    ",",
    '"',
    '""',
    "\n",
    "\r\n",
    "\r",
    "a b",
    " ",
    "\ufeff",
    "é",
    "\0",
    "x,y",
]


def test_random_csv_files(tmp_path: Path) -> None:
    path, verdicts = tmp_path / "data.csv", []
    for seed in range(1500):
        rng = random.Random(seed)
        rows = [[rng.choice(CSV) for _ in range(3)] for _ in range(rng.randint(0, 3))]
        lines = [",".join(f'"{cell}"' if rng.random() < 0.3 else cell for cell in row) for row in rows]
        content = rng.choice(("\n", "\r\n", "\r")).join(["text,label,c"] * (seed % 9 > 0) + lines)
        content += "".join(rng.choices(CSV, k=rng.choice((0, 0, 2, 9))))
        if seed % 7 == 0:
            content = "\ufeff" + content
        path.write_bytes(content.encode())
        verdicts.append(agree(python_examples, native_examples, path))
    assert 20 < verdicts.count("ok") < 1400


def test_written_csv_files(tmp_path: Path) -> None:
    """What a writer of any texts writes is read back."""
    path = tmp_path / "data.csv"
    for seed in range(60):
        rng = random.Random(seed)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator=rng.choice(("\n", "\r\n")), quoting=rng.choice((0, 1)))
        writer.writerow(["label", "text", "c"])
        rows = [[rng.choice("01"), any_text(rng), any_text(rng)] for _ in range(20)]
        writer.writerows(rows)
        path.write_bytes(buffer.getvalue().encode())
        assert agree(python_examples, native_examples, path) == "ok"


VALUES: list[Any] = [
    "a", "", " ", "\u200b", "it's", 1, 1.5, 1e16, -0.0, True, None, [], {}, "x" * 60, 2**63, 2**64, "\ud800",
    "é",
]  # fmt: skip


def test_random_json_lines(tmp_path: Path) -> None:
    path, verdicts = tmp_path / "data.jsonl", []
    for seed in range(1500):
        rng = random.Random(seed)
        rows = []
        for _ in range(rng.randint(1, 3)):
            row = {
                name: rng.choice(VALUES if rng.random() < 0.3 else VALUES[:1])
                for name in ("text", "label", "c")
            }
            if rng.random() < 0.1:
                del row[rng.choice(list(row))]
            rows.append(json.dumps(row, ensure_ascii=rng.random() < 0.5 or "\ud800" in row.values()))
        content = rng.choice(("\n", "\r\n", "\r", "\n\n")).join(rows).encode(errors="replace")
        if rng.random() < 0.3:
            at = rng.randrange(len(content))
            content = content[:at] + rng.choice((b"", b"\xff", b"\0", b"{", b'"', b",")) + content[at + 1 :]
        path.write_bytes(content)
        verdicts.append(agree(python_examples, native_examples, path))
    assert 100 < verdicts.count("ok") < 1400


def native_conversations(path: Path) -> Any:
    return [(tuple(map(tuple, messages)), where) for messages, where in native.read_conversations(str(path))]


def python_conversations(path: Path) -> Any:
    return [(row.messages, row.where) for row in read_conversations(path)]


def test_random_conversations(tmp_path: Path) -> None:
    path, verdicts = tmp_path / "chat.jsonl", []
    for seed in range(1500):
        rng = random.Random(seed)

        def some(usual: Any, rng: random.Random = rng) -> Any:
            return (
                usual
                if rng.random() < 0.95
                else rng.choice([*VALUES, "user", "system", [1, "a"], {"a": None}])
            )

        roles = (["system"] if rng.random() < 0.3 else []) + ["user", "assistant"] * rng.randint(1, 2)
        messages: Any = [{"role": some(role), "content": some(f" {role} ")} for role in roles]
        if rng.random() < 0.1:
            rng.choice(messages).update(more=1)
        row = (
            {"messages": some(messages)}
            if rng.random() < 0.6
            else {"prompt": some("p"), "response": some("r")}
        )
        if rng.random() < 0.1:
            row.update(rng.choice(({"prompt": "x"}, {"other": 1}, {"messages": []})))
        if rng.random() < 0.05:
            row = rng.choice(([], 5, "text", None, {}))  # type: ignore[assignment]
        path.write_text(json.dumps(row) + "\n")
        verdicts.append(agree(python_conversations, native_conversations, path))
    assert 300 < verdicts.count("ok") < 1400


@pytest.mark.parametrize(
    "content",
    [
        b"", b"text,label,c", b"\xff\xfet\0", b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9", b"PAR1", b"a\n\xe9\n",
        b"a\nb\0", b"text,text,label,c\na,b,c,d\n", b"text,label,c\na,b\n", b'text,label,c\na,"b"c,d\n',
        b'text,label,c\n"a,b,c\n', b'text,label,c\na "b" c,1,2\n', b"\xef\xbb\xbftext,label,c\na,b,c\n",
        b"\xef\xbb\xbf\xef\xbb\xbftext,label,c\na,b,c\n", b"text,label,c\r\n\r\na,b,c\r",
        b"text,label,c\n,b,c\n",
    ],
)  # fmt: skip
def test_odd_files(content: bytes, tmp_path: Path) -> None:
    for name in ("data.csv", "data.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        agree(python_examples, native_examples, path)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "none.csv", tmp_path / "folder.csv", Path("/dev/null.csv"), tmp_path / "x.txt"):
        verdicts = [outcome(function, path) for function in (python_examples, native_examples)]
        assert verdicts[0][0] == verdicts[1][0] == "refused"
        assert verdicts[0][1].replace(" or the name of a task", "") == verdicts[1][1]


def test_a_file_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"text,label,c\n" + b"a,b,c\n" * 2_000_000)
    ended = threading.Event()

    def grow() -> None:
        with path.open("ab") as file:
            while not ended.is_set():
                file.write(b"a,b,c\n")
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        # The native reader holds the interpreter's lock, so another process has to read it.
        code = (
            "import sys; from mobizo_kernels.executorch._library import load_trainer\n"
            "load_trainer().read_examples(sys.argv[1], 'text', 'label', [])"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
        )
    finally:
        ended.set()
        thread.join()
    assert f"data: {path} changed while it was read" in found.stderr


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
