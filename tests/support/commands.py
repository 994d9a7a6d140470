"""Commands of `mobizo` as tests run them: in this process, short, on a tiny model."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from tiny_texts import TEMPLATE, WORDS

from mobizo_kernels.cli import main

PROMPT = [f"--template={TEMPLATE}", f"--verbalizer={json.dumps(WORDS)}"]
SHORT = [
    *PROMPT,
    "--steps=2",
    "--queries=2",
    "--batch-size=4",
    "--eval-rows=8",
    "--validation-rows=8",
    "--dtype=float32",
]


# Every option that names a file or a directory to write, which goes where the braces are. The adapter that is
# read is the directory in which the test runs, or a file that is not there: outputs are looked at first.
WRITING = pytest.mark.parametrize(
    ("command", "option"),
    [
        (["train", "--out={}"], "out"),
        (["train", "--out=run", "--journal={}"], "journal"),
        (["train", "--out=run", "--tensorboard={}"], "tensorboard"),
        (["tokenize", "--out={}"], "out"),
        (["export", "--out={}"], "out"),
        (["export", "--out=program.pte", "--tokenizer={}"], "tokenizer"),
        (["adapter", ".", "{}", "--model=absent"], "TO"),
        (["adapter", "adapter.safetensors", "{}"], "TO"),
        (["replay", "run.journal", "--out={}"], "out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)


def writing(command: list[str], to: str, inputs: Path) -> list[str]:
    """A command of `WRITING` that writes to `to` what it makes of `inputs`."""
    texts = [f"--model={inputs / 'model'}", f"--data={inputs / 'data.csv'}", *PROMPT]
    filled = [argument.replace("{}", to) for argument in command]
    return [*filled, *(texts if command[0] in ("train", "tokenize", "export") else [])]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main.run(arguments)
    return int(exit_info.value.code or 0)


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def train(inputs: Path, out: Path, *options: str) -> int:
    return run(
        "train",
        f"--model={inputs / 'model'}",
        f"--data={inputs / 'data.csv'}",
        f"--out={out}",
        *SHORT,
        *options,
    )


def on_terminal(name: str, arguments: list[str]) -> None:
    """A command as the first process of a terminal."""
    os.setsid()
    terminal = os.open(name, os.O_RDWR)
    for stream in range(3):
        os.dup2(terminal, stream)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115  to the end
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what nohup has ignored stays so
    os._exit(run(*arguments))  # multiprocessing would flush what the terminal has not taken
