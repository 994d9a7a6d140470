"""examples/trainer: a script of transformers' Trainer, and the same without gradients, three lines apart."""

from __future__ import annotations

import ast
import difflib
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_texts
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

EXAMPLES = Path(__file__).parents[2] / "examples/trainer"
SCRIPTS = ("first_order.py", "zeroth_order.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs(script: str, tmp_path: Path) -> None:
    model = tiny_texts.save_model(tmp_path / "model")
    rows = tiny_texts.write_jsonl(tmp_path / "rows.jsonl", tiny_texts.questions(12))
    command = [sys.executable, EXAMPLES / script, model, rows, tmp_path / "out"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "train_loss" in ran.stdout
    for directory in ("out", "out/checkpoint-3", "out/checkpoint-6"):
        adapter = load_file(tmp_path / directory / "adapter_model.safetensors")
        assert all(bool(tensor.any()) for tensor in adapter.values())
        assert (tmp_path / directory / "adapter_config.json").is_file()
    assert (tmp_path / "out/checkpoint-6/run.journal").is_file() == (script == "zeroth_order.py")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out/merged")


def test_three_lines_differ() -> None:
    first, zeroth = (code(EXAMPLES / script) for script in SCRIPTS)
    changes = [line for line in difflib.ndiff(first, zeroth) if line[0] in "+-"]
    assert sum(line[0] == "-" for line in changes) == sum(line[0] == "+" for line in changes) == 3


def test_the_page_shows_them() -> None:
    page = (EXAMPLES.parents[1] / "docs/trainer.md").read_text(encoding="utf-8")
    first, zeroth = (code(EXAMPLES / script) for script in SCRIPTS)
    for line in difflib.ndiff(first, zeroth):
        if line[0] in "+-":
            assert f"{line[0]}{line[2:]}" in page.splitlines()


def code(file: Path) -> list[str]:
    """The lines of a script behind its docstring."""
    text = file.read_text(encoding="utf-8")
    end = ast.parse(text).body[0].end_lineno
    return text.splitlines()[end:]
