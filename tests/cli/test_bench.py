"""`mobizo bench`: what it times is what it says, and its figures hang together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run
from transformers import LlamaConfig

from mobizo_kernels.cli import bench

SHORT = ["--tokens=12", "--queries=3", "--batch-size=4", "--rounds=1", "--rank=4", "--layers=1:1"]


@pytest.mark.parametrize(("tail", "rows"), [(0, 4), (2, 1)])
def test_figures(tail: int, rows: int, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        f"--model={inputs / 'model'}",
        *SHORT,
        f"--tail={tail}",
        f"--batch-size={rows}",
        "--dtype=float32",
    ]
    assert run("bench", *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["groups"], found["tuned_parameters"]) == (6, 4 * (32 + 16 + 16 + 32 + 48 + 48 + 32))
    assert found["step_per_forward"] == pytest.approx(found["step_ms"] / found["forward_ms"], rel=0.02)
    assert found["noise_gb_per_s"] > 0 and found["copy_gb_per_s"] > 0 and found["peak_rss_mb"] > 50
    assert found["settings"]["tail"] == tail


def test_a_random_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 300}
    tiny = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    assert bench._SMOLLM2_135M.num_hidden_layers == 30
    monkeypatch.setattr(bench, "_SMOLLM2_135M", tiny)
    assert run("bench", *SHORT) == 0
    table = capsys.readouterr().out
    assert table.startswith("random, 0 million parameters in bfloat16; 4 rows of 12 tokens; ")
    assert (
        "\n  step, 6 groups        " in table
        and " x the forward\n" in table
        and " GB/s (rademacher)\n" in table
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model=./absent", "model './absent'"),
        ("--tokens=3", "tokens: expected more than --tail and a label have, got 3"),
        ("--model={inputs}/few_positions", "tokens: the model has 8 positions, got 12"),
        ("--layers=3:4", "layers: expected FIRST <= LAST within 0:1 for this model, got '3:4'"),
    ],
)
def test_bad_input(option: str, message: str, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"--model={inputs / 'model'}"
    assert run("bench", model, *SHORT, option.replace("{inputs}", str(inputs))) == 2
    assert message in capsys.readouterr().err
