"""No command overwrites what it reads, whatever the names that lead to it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig
from tiny_texts import TEMPLATE, WORDS, reviews, save_model, write_csv

from mobizo_kernels.cli import main
from mobizo_kernels.lora import save_adapter, save_device_adapter, wrap
from mobizo_kernels.models import load_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, an adapter as a PEFT directory and as a file, a program."""
    directory = tmp_path_factory.mktemp("inputs")
    save_model(directory / "model")
    write_csv(directory / "data.csv", reviews())
    model, _ = load_model(str(directory / "model"), "float32")
    wrap(model, LoraConfig(r=2, target_modules=["v_proj"]))
    save_adapter(model, directory / "peft")
    save_device_adapter(model, directory / "device.safetensors")
    (directory / "program.pte").write_bytes(b"a program")
    return directory


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


TRAIN = ["train", "--model=model", "--data=data.csv", "--overwrite"]
DEVICE = [*TRAIN, "--engine=executorch", "--dtype=float32"]
TOKENIZE = ["tokenize", "--model=model", "--data=data.csv"]
EXPORT = ["export", "--model=model", "--overwrite"]
CASES: list[tuple[list[str], str]] = [
    ([*TOKENIZE, "--out=data.csv"], "out: .* of data"),
    ([*TOKENIZE, "--out=model/config.json"], "out: .* of model"),
    ([*TOKENIZE, "--out=hard"], "out: 'hard' is the same file as 'data.csv'"),
    ([*TOKENIZE, "--out=soft"], "out: 'soft' is the same file as 'data.csv'"),
    ([*TOKENIZE, "--out=peft/../data.csv"], "out: .* of data"),
    ([*EXPORT, "--out=model/model.safetensors"], "out: .* of model"),
    ([*EXPORT, "--adapter=peft", "--out=peft/adapter_config.json"], "of adapter"),
    (["adapter", "peft", "peft/adapter_config.json", "--model=model", "--overwrite"], "TO: .* of FROM"),
    (["adapter", "peft", "model/tokenizer.json", "--model=model", "--overwrite"], "TO: .* of model"),
    (["adapter", "peft/adapter_model.safetensors", "peft", "--overwrite"], "TO: .* of FROM"),
    ([*TRAIN, "--out=run", "--journal=run/metrics.json"], "metrics.json' is the same .* of journal"),
    ([*TRAIN, "--out=run", "--journal=data.csv", "--resume"], "journal: .* of data"),
    ([*TRAIN, "--out=run", "--journal=model/config.json", "--resume"], "journal: .* of model"),
    ([*TRAIN, "--out=new", "--journal=new"], "journal: expected a file, got the directory 'new'"),
    ([*TRAIN, "--out=new/run", "--journal=new"], "journal: expected a file, got the directory 'new'"),
    ([*TRAIN, "--out=linked"], "out: .*linked/metrics.json' is the same file as 'data.csv' of data"),
    ([*DEVICE, "--out=other", "--program=other/dataset.safetensors"], "out: .* of program"),
    ([*DEVICE, "--out=run", "--program=program.pte", "--journal=program.pte", "--resume"], "of program"),
    ([*DEVICE, "--out=run", "--journal=run/program.pte"], "program.pte' is the same .* of journal"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "message"), CASES, ids=lambda value: " ".join(value)[:70] if isinstance(value, list) else ""
)
def test_no_input_is_overwritten(
    command: list[str],
    message: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(inputs, tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all")
    Path("hard").hardlink_to("data.csv")
    Path("soft").symlink_to("data.csv")
    Path("linked").mkdir()
    Path("linked/metrics.json").hardlink_to("data.csv")
    Path("other").mkdir()
    Path("other/dataset.safetensors").write_bytes(b"a program")
    if command[0] != "adapter":
        command = [*command, f"--template={TEMPLATE}", f"--verbalizer={json.dumps(WORDS)}"]
    before = contents(Path("."))
    with pytest.raises(SystemExit) as ended:
        main.run(command)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert contents(Path(".")) == before


LABELLED = [f"--template={TEMPLATE}", f"--verbalizer={json.dumps(WORDS)}"]


@pytest.mark.parametrize(
    "options",
    [[], LABELLED, [*LABELLED, "--engine=executorch"]],
    ids=["free answers", "labels", "executorch"],
)
def test_a_journal_that_is_there_is_refused_at_once(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the model is even looked for."""
    (tmp_path / "journal").write_text("of another run")
    data = tmp_path / ("data.csv" if options else "chat.jsonl")
    files = [f"--model={tmp_path / 'none'}", f"--data={data}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as ended:
        main.run(["train", *files, f"--journal={tmp_path / 'journal'}", *options])
    assert ended.value.code == 2
    assert (
        "journal: " in (said := capsys.readouterr().err) and "exists; name another, or add --resume" in said
    )
    assert (tmp_path / "journal").read_text() == "of another run" and not (tmp_path / "out").exists()
