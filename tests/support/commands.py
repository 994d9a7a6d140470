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
