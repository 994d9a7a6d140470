"""One training from the command line inside ExecuTorch, made once for all tests that look at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from commands import run
from tiny_texts import TEMPLATE, WORDS, reviews, save_chat_model, write_csv

from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.train import train

STEPS = 7
QUERIES = 2
CONTEXT = 128


def task_in(folder: Path) -> dict[str, Any]:
    """Settings for a tiny model and little data, which lie in `folder`; :func:`make_task` makes them."""
    return {
        "model": str(folder / "model"),
        "data": str(folder / "data.csv"),
        "template": TEMPLATE,
        "verbalizer": json.dumps(WORDS),
        "max_length": 18,
        "queries": QUERIES,
        "batch_size": 4,
        "targets": "v_proj",
        "layers": "0:1",
        "steps": STEPS,
        "lr": 0.05,
        "eval_rows": 21,
        "validation_rows": 9,
        "eval_every": 2,
        "start": "zero",
    }


def inside_of(folder: Path) -> dict[str, Any]:
    """The same inside ExecuTorch, with a program that `mobizo export` made."""
    return {**task_in(folder), "engine": "executorch", "program": folder / "new" / "tiny.pte"}


def make_task(folder: Path) -> None:
    """Model, data, the program, and a run with its journal in `finished`."""
    save_chat_model(folder / "model")
    write_csv(folder / "data.csv", reviews())
    inside = inside_of(folder)
    shared = ("model", "template", "verbalizer", "max_length", "queries", "batch_size", "targets", "layers")
    values = {name: inside[name] for name in shared} | {"context": CONTEXT, "out": inside["program"]}
    assert run("export", *options(values)) == 0
    out = folder / "finished"
    train(TrainSettings(**inside, out=out, journal=out / "journal"))


def options(values: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()
