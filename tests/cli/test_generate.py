"""`mobizo generate`: answers of a model, with an adapter or without."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from commands import run
from tiny_texts import save_chat_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from mobizo_kernels import save_adapter, wrap
from mobizo_kernels.lora import adapter_layers

INVOCATION = "<|start|>assistant\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and in `adapter` an Activated LoRA of it."""
    directory = tmp_path_factory.mktemp("model")
    save_chat_model(directory)
    tokens = AutoTokenizer.from_pretrained(directory)(INVOCATION).input_ids
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"], alora_invocation_tokens=tokens, task_type="CAUSAL_LM"
    )
    wrapped = wrap(AutoModelForCausalLM.from_pretrained(directory), config, seed=0)
    for layer in adapter_layers(wrapped).values():
        layer.lora_b.data.normal_(generator=torch.Generator().manual_seed(1))
    save_adapter(wrapped, directory / "adapter")
    return directory


def generated(capsys: pytest.CaptureFixture[str], model: Path, *arguments: str) -> dict[str, Any]:
    assert run("generate", *arguments, f"--model={model}", "--dtype=float32", "--json") == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_answers_are_those_of_transformers_and_peft(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["The film?", "Is the old score of it fresh?"]
    adapter = model / "adapter"
    found = generated(
        capsys, model, *asked, f"--adapter={adapter}", "--system=Be dull.", "--max-new-tokens=7"
    )
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    for text, tokens, answer in zip(asked, found["tokens"], found["answers"], strict=True):
        prompt = f"<|start|>system\nBe dull.<|end|>\n<|start|>user\n{text}<|end|>\n{INVOCATION}"
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        made = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False,
            eos_token_id=tokenizer.convert_tokens_to_ids(["<|end|>", "<|start|>", "</s>"]), pad_token_id=0,
        )  # fmt: skip
        assert tokens == made[0, ids.shape[1] :].tolist()
        assert answer == tokenizer.decode(tokens, skip_special_tokens=True).strip()
    base = generated(capsys, model, *asked, "--system=Be dull.", "--max-new-tokens=7")
    assert base["tokens"] != found["tokens"]


def test_raw_prompts_and_sampling(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--raw", "--max-new-tokens=9"]
    greedy = generated(capsys, model, "The film", *short)
    plain = AutoModelForCausalLM.from_pretrained(model)
    ids = AutoTokenizer.from_pretrained(model)("The film", return_tensors="pt").input_ids
    made = plain.generate(input_ids=ids, max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert greedy["tokens"][0] == made[0, ids.shape[1] :].tolist()
    warm = [*short, "--temperature=2", "--top-k=50", "--top-p=0.9"]
    drawn = [generated(capsys, model, "The film", *warm, f"--seed={seed}")["tokens"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] != greedy["tokens"]


def test_answers_are_printed_as_text(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["The film?", "A plot?"]
    found = generated(capsys, model, *asked, "--max-new-tokens=4")
    assert run("generate", *asked, f"--model={model}", "--dtype=float32", "--max-new-tokens=4") == 0
    assert capsys.readouterr().out == "\n\n".join(found["answers"]) + "\n"


def test_where_an_adapter_is_off_is_said(
    model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--raw", "--max-new-tokens=4"]
    found = generated(capsys, model, "The film", f"--adapter={model / 'adapter'}", *options)
    assert "'The film' lacks the adapter's invocation tokens" in caplog.text
    assert found["tokens"] == generated(capsys, model, "The film", *options)["tokens"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top-p=0"], "settings: top_p must be in"),
        (["--temperature=inf"], "temperature: expected a finite number, got inf"),
        (["--threads=99999999999"], "'--threads': should be less than or equal to 1024, got '99999999999'"),
        (
            ["--max-new-tokens=500"],
            "max_new_tokens: the model has 128 positions and a prompt .* tokens, got 500",
        ),
        (["--raw", "--system=a"], "system: expected none with --raw"),
        (["--adapter=absent"], "adapter: "),
        (["a<|end|>"], "the prompt holds the special token '<|end|>'"),
        (["--raw", "", "--max-new-tokens=4"], "prompts: expected text, got an empty prompt"),
    ],
)
def test_what_is_refused(
    options: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("generate", "a", *options, f"--model={model}", "--dtype=float32") == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
