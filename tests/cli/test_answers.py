"""`mobizo train` and `mobizo eval` where answers are free text."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from safetensors.torch import load_file
from tiny_texts import CHAT_TEMPLATE, questions, save_chat_model, save_model, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from mobizo_kernels.data import read_conversations, split_conversations

SHORT = [
    "--steps=4", "--queries=2", "--batch-size=4", "--eval-rows=6", "--validation-rows=6", "--dtype=float32",
    "--max-new-tokens=5",
]  # fmt: skip
METRICS = ("loss", "perplexity", "exact_match", "f1", "rouge_l")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template, and conversations."""
    directory = tmp_path_factory.mktemp("chat")
    save_chat_model(directory / "model")
    save_chat_model(directory / "open", CHAT_TEMPLATE.replace("<|start|>", ""))
    save_model(directory / "plain")
    talks = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
                {"role": "user", "content": "And?"},
                {"role": "assistant", "content": "fine"},
            ]
        }
        for row in questions()
    ]
    write_jsonl(directory / "chat.jsonl", questions())
    write_jsonl(directory / "talks.jsonl", talks)
    write_jsonl(directory / "bad.jsonl", [*questions(), {"prompt": "a", "response": " "}])
    write_jsonl(directory / "long.jsonl", [*questions(), {"prompt": "a " * 300, "response": "b"}])
    return directory


def command(chat: Path, name: str, *more: str, data: str = "chat.jsonl", model: str = "model") -> list[str]:
    return [name, f"--model={chat / model}", f"--data={chat / data}", *more]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("tail", ["--tail=2", "--tail=0"])
def test_train_then_eval(tail: str, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(*command(chat, "train", f"--out={out}", "--lr=0.05", tail, *SHORT), "--json") == 0
    summary = last_line(capsys)
    record = json.loads((out / "metrics.json").read_text())
    assert summary["settings"]["max_length"] == 512
    assert summary["eval_rows"] == 6 == len(record["predictions"])
    assert all(isinstance(answer, str) for answer in record["predictions"])
    for when in ("before", "after"):
        assert all(math.isfinite(summary[f"{metric}_{when}"]) for metric in METRICS)
        assert summary[f"perplexity_{when}"] == pytest.approx(math.exp(summary[f"loss_{when}"]))
    assert summary["loss_after"] != summary["loss_before"]
    assert [point["balanced_accuracy"] for point in record["validation"]] == [None] * 5
    invocation = json.loads((out / "adapter" / "adapter_config.json").read_text())["alora_invocation_tokens"]
    tokenizer = AutoTokenizer.from_pretrained(chat / "model")
    assert (
        invocation is None if tail == "--tail=0" else tokenizer.decode(invocation) == "<|start|>assistant\n"
    )

    short = ["--eval-rows=6", "--dtype=float32", "--max-new-tokens=5"]
    assert run(*command(chat, "eval", *short, f"--adapter={out / 'adapter'}", "--json")) == 0
    scored = last_line(capsys)
    assert {metric: scored[metric] for metric in METRICS} == {
        metric: summary[f"{metric}_after"] for metric in METRICS
    }
    assert run(*command(chat, "eval", *short)) == 0
    table = capsys.readouterr().out
    assert "perplexity" in table and "ROUGE-L" in table


def test_the_loss_is_that_of_the_answers(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command(chat, "eval", "--dtype=float32", "--max-new-tokens=1", "--json")) == 0
    scored = last_line(capsys)
    model = AutoModelForCausalLM.from_pretrained(chat / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(chat / "model")
    total = count = 0
    for row in split_conversations(read_conversations(chat / "chat.jsonl")).test:
        user, answer = row.messages[0][1], row.messages[1][1]
        before = tokenizer(f"<|start|>user\n{user}<|end|>\n<|start|>assistant\n").input_ids
        ids = before + tokenizer(f"{answer}<|end|>").input_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        places = range(len(before), len(ids))
        total -= sum(float(logits[place - 1, ids[place]]) for place in places)
        count += len(places)
    assert scored["loss"] == pytest.approx(total / count, rel=1e-5)


def test_every_answer_of_a_conversation_is_a_row(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--dtype=float32", "--max-new-tokens=1", "--json"]
    rows = []
    for answers in ("all", "last"):
        assert run(*command(chat, "eval", *short, f"--answers={answers}", data="talks.jsonl")) == 0
        rows.append(last_line(capsys)["rows"])
    assert rows == [16, 8]


def test_a_run_that_was_cut_off_goes_on(chat: Path, tmp_path: Path) -> None:
    journal = tmp_path / "run.journal"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recorded = [f"--journal={journal}"]
    assert run(*command(chat, "train", f"--out={whole}", *SHORT, *recorded)) == 0
    content = journal.read_bytes()
    journal.write_bytes(content[: -2 * (28 + 4 * 2)])
    assert run(*command(chat, "train", f"--out={cut}", *SHORT, *recorded, "--resume")) == 0
    assert journal.read_bytes() == content
    name = Path("adapter", "adapter_model.safetensors")
    found, expected = load_file(cut / name), load_file(whole / name)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_nothing_special_before_an_answer_is_no_invocation(
    chat: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(*command(chat, "train", f"--out={tmp_path / 'out'}", *SHORT, model="open")) == 0
    assert "the adapter acts everywhere" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data={chat}/bad.jsonl"], "bad.jsonl line 41 has an empty 'response'"),
        (["--data={chat}/long.jsonl"], "long.jsonl line 41 has .* tokens, .* of its prompt and 2 of"),
        (["--data={chat}/absent.jsonl"], "there is no file"),
        (["--model={chat}/plain"], "model: its tokenizer has no chat template"),
        (["--max-length=9"], "of its answer, and 9 fit"),
        (["--start=readout"], "start: expected zero where answers are free"),
        (["--engine=executorch", "--start=readout"], "start: expected zero where answers are free"),
        (["--text-column=prompt"], "text_column: free answers are read from 'response' or 'messages'"),
        (["--batch-size=100"], "batch_size: expected 1 to 28"),
        (["--data=asdiv", "--template={{text}}"], "answers of asdiv are free text, which have no --templ"),
    ],
)  # fmt: skip
def test_what_is_refused(
    options: list[str], message: str, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [option.format(chat=chat) for option in options]
    assert run(*command(chat, "train", f"--out={tmp_path / 'out'}", *SHORT, *options)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error.strip().splitlines()[-1]), error
    assert not (tmp_path / "out").exists()


REWARD = """
def short(prompt, answers, reference):
    assert prompt.startswith("<|start|>user") and reference
    return [1 / (1 + len(answer)) for answer in answers]
"""


@pytest.mark.parametrize("objective", ["f1", "json-answer", "{reward}:short"])
def test_objectives_of_what_is_written(
    objective: str, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    chosen = objective.format(reward=tmp_path / "reward.py")
    journal, out = tmp_path / "run.journal", tmp_path / "out"
    train = command(chat, "train", f"--out={out}", *SHORT, f"--objective={chosen}", f"--journal={journal}")
    assert run(*train, "--reward-shaping=rank", "--eval-every=2", "--json") == 0
    summary = last_line(capsys)
    assert summary["settings"]["objective"] == chosen
    record = json.loads((out / "metrics.json").read_text())
    assert len(record["losses"]) == 4 and all(0 <= loss <= 1 for loss in record["losses"])
    assert [point["step"] for point in record["validation"]] == [0, 2, 4]
    others = [[], ["--reward-shaping=rank", "--max-new-tokens=9"]]  # than it was shaped by, and rewarded for
    if "reward" in objective:
        (tmp_path / "reward.py").write_text(REWARD.replace("1 +", "2 +"))
        others.append(["--reward-shaping=rank"])
    for other in others:
        assert run(*train, *other, "--resume") == 2
        assert "data" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("f2", "objective: expected cross-entropy, exact-match, .* or FILE.py:FUNCTION .*, got f2"),
        ("accuracy", "objective: expected cross-entropy, exact-match, .*, got accuracy"),
        ("absent.py:f", "objective: there is no file 'absent.py'"),
        ("{path}/reward.py:long", "objective: .*reward.py has no function 'long'"),
        ("{path}/broken.py:f", "objective: .*broken.py cannot be run"),
    ],
)
def test_objectives_that_are_not_there(
    objective: str, message: str, chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "broken.py").write_text("def")
    chosen = f"--objective={objective.format(path=tmp_path)}"
    for engine in ("eager", "executorch"):
        asked = [f"--out={tmp_path / 'out'}", *SHORT, chosen, f"--engine={engine}"]
        assert run(*command(chat, "train", *asked)) == 2
        assert re.search(message, capsys.readouterr().err.splitlines()[-1])
