"""Data sets of texts through mobizo.h: the bytes of the runner's, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import c_interface as c
import pytest
from c_process import apart
from crash import run_to_end
from tiny_texts import TEMPLATE, WORDS, reviews, save_model, write_csv

from mobizo_kernels.cli import main


def test_texts_become_a_data_set(tmp_path: Path) -> None:
    model, program = save_model(tmp_path / "model"), tmp_path / "program.pte"
    options = {
        "model": model, "out": program, "max-length": 18, "queries": 1, "batch-size": 2, "targets": "v_proj",
        "template": TEMPLATE, "verbalizer": json.dumps(WORDS),
    }  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main.run(["export", *(f"--{name}={value}" for name, value in options.items())])
    assert not ended.value.code
    texts, tokenizer = write_csv(tmp_path / "reviews.csv", reviews()), Path(model) / "tokenizer.json"
    mine, theirs = tmp_path / "c.safetensors", tmp_path / "runner.safetensors"
    settings = ("--steps=9", "--seed=-3", "--train-rows=11", "--validation-rows=7", "--eval-rows=5")
    run_to_end(["tokenize", program, texts, "--tokenizer", tokenizer, "--out", theirs, *settings])
    changes = {"steps": 9, "seed": -3, "train_rows": 11, "validation_rows": 7, "test_rows": 5}
    refused = {
        "answers": ({"answers": "some"}, "options.answers must be all or last, got 'some'"),
        "steps": ({"steps": 0}, "options.steps must be at least 1, got 0"),
        "rows": ({"test_rows": -1}, "options.test_rows must be at least 0, got -1"),
    }
    datasets = [(str(tmp_path / name), bad) for name, (bad, _) in refused.items()]
    *said, end = apart(c.tokenized, program, texts, tokenizer, [*datasets, (str(mine), changes)])
    assert end == "OK"
    assert mine.read_bytes() == theirs.read_bytes()
    assert [line for line in said if line.startswith("INVALID")] == [
        f"INVALID: {m}" for _, m in refused.values()
    ]
    assert not any(Path(path).exists() for path, _ in datasets)
    over_itself = apart(c.tokenized, program, texts, tokenizer, [(str(texts), {})])
    assert "dataset" in over_itself[-1] and over_itself[-1].startswith("INVALID: ")
