"""`mobizo replay`: the adapter of a run from its journal alone."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile

import peft
import pytest
from commands import run, train
from transformers import AutoModelForCausalLM

from mobizo_kernels.journal import read_journal

WEIGHTS = Path("adapter_model.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        ["--start=zero", "--optimizer=adam", "--lr=0.01"],
        ["--start=zero", "--targets=q_proj,lm_head", "--layers=0:1", "--alpha=3", "--seed=5", "--tail=0"],
        ["--start=readout", "--readout-rows=40", "--dtype=bfloat16"],
        ["--start=readout", "--readout-rows=40", "--readout-layers=several", "--tail=1"],
    ],
    ids=["zero", "head", "readout", "several layers"],
)
def test_the_adapter_of_a_run(
    options: list[str], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal, out, again = tmp_path / "run.journal", tmp_path / "out", tmp_path / "again"
    assert train(inputs, out, "--rank=4", "--no-stop-unsteady", f"--journal={journal}", *options) == 0
    best = json.loads((out / "metrics.json").read_text())["best_step"]
    capsys.readouterr()
    common = [str(journal), f"--model={inputs / 'model'}", f"--out={again}"]
    assert run("replay", *common, f"--until={best}", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["recorded"]) == (best, 2)
    assert (again / WEIGHTS).read_bytes() == (out / "adapter" / WEIGHTS).read_bytes()
    peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(inputs / "model"), again)
    assert run("replay", *common) == 2
    assert "is not empty; name another directory, or add --overwrite" in capsys.readouterr().err
    assert run("replay", *common, "--overwrite") == 0
    assert "recorded              2" in capsys.readouterr().out


def test_bad_input(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal, out = tmp_path / "run.journal", tmp_path / "again"
    assert train(inputs, tmp_path / "out", "--rank=4", "--start=zero", f"--journal={journal}") == 0
    content = journal.read_bytes()
    assert len(read_journal(journal)[1]) == 2
    (tmp_path / "cut").write_bytes(content[:50])
    (tmp_path / "none").write_bytes(b"no journal")
    model = f"--model={inputs / 'model'}"
    for arguments, message in (
        ([str(tmp_path / "absent"), model], "mobizo: journal: "),
        ([str(tmp_path / "cut"), model], "its header is cut short"),
        ([str(tmp_path / "none"), model], "is no journal"),
        ([str(journal), f"--model={inputs / 'wider'}"], "mobizo: journal"),
        ([str(journal), model, "--until=3"], "until must be from 0 to 2"),
        ([str(journal), model, f"--start={tmp_path}"], "mobizo: start: "),
    ):
        assert run("replay", *arguments, f"--out={out}") == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    directory = tmp_path / "in" / "the" / "way"
    directory.mkdir(parents=True)
    copyfile(journal, directory / WEIGHTS)
    assert run("replay", str(directory / WEIGHTS), model, f"--out={directory}", "--overwrite") == 2
    assert "is the same file as" in capsys.readouterr().err
