"""examples/*.py, each run as a user would, on tiny models and texts."""

from __future__ import annotations

import json
import re
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_texts
from peft import PeftModel
from transformers import AutoModelForCausalLM

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return tiny_texts.write_csv(tmp_path / "reviews.csv", tiny_texts.reviews())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_texts.save_model(tmp_path / "model")


def run(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> None:
    """A script in this process, which has imported what takes seconds."""
    monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def losses(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"loss ([\d.]+)", printed)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def assert_loads(model: Path, adapter: Path) -> None:
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    tuned = [value for name, value in loaded.named_parameters() if "lora_B" in name]
    assert tuned and all(bool(value.any()) for value in tuned)


def test_eager(
    model: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("eager.py", monkeypatch, model, reviews, tmp_path / "out")
    seen = losses(capsys.readouterr().out)
    assert len(seen) == 40 and mean(seen[-10:]) < mean(seen[:10])
    assert_loads(model, tmp_path / "out")


def test_ops(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("ops.py", monkeypatch)
    seen = losses(capsys.readouterr().out)
    assert len(seen) == 5 and seen == sorted(seen, reverse=True) and seen[-1] < 1


@pytest.mark.executorch
@pytest.mark.skipif(not find_spec("executorch"), reason="ExecuTorch is not installed")
def test_device(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_texts.save_model(tmp_path / "model", num_hidden_layers=1)  # an export takes seconds a layer
    run("device.py", monkeypatch, model, reviews, tmp_path / "out")
    printed = capsys.readouterr().out
    assert len(losses(printed)) == 40 and "accuracy on the test rows" in printed
    assert_loads(model, tmp_path / "out/adapter")


@pytest.mark.skipif(not find_spec("trl"), reason="TRL is not installed: pip install 'mobizo-kernels[trl]'")
def test_trl_sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TRL_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    model = tiny_texts.save_chat_model(tmp_path / "model")
    chats = [
        {"messages": [{"role": "user", "content": row["prompt"]},
                      {"role": "assistant", "content": row["response"]}]}
        for row in tiny_texts.questions(16)
    ]  # fmt: skip
    file = tiny_texts.write_jsonl(tmp_path / "chats.jsonl", chats)
    run("trl_sft.py", monkeypatch, model, file, tmp_path / "out")
    history = json.loads((tmp_path / "out/checkpoint-4/trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
    assert_loads(model, tmp_path / "out")
