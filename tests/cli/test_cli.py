"""The command line: what it prints, and how every kind of bad input ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PROMPT, SHORT, contents, run, train
from tiny_texts import write_csv

import mobizo_kernels
from mobizo_kernels.cli import demo
from mobizo_kernels.cli.processes import in_fresh_process
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.task_settings import as_json
from mobizo_kernels.data import Example
from mobizo_kernels.errors import InputError
from mobizo_kernels.lora.targets import layer_range


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data=absent.csv"], "there is no file 'absent.csv'"),
        (["--data=data.parquet"], "expected FILE.csv or FILE.jsonl or the name of a task"),
        (["--template="], "template: expected one with --data"),
        (["--verbalizer="], "verbalizer: expected one with --data"),
        (["--template={text} {question}?"], "no column 'question', only 'text', 'label'"),
        (["--data={inputs}/empty_text.csv"], "line 146 has an empty 'text'"),
        (
            ["--data={inputs}/third_label.csv"],
            "one word for each label of the data ('0', '1', '2'), got '0', '1'",
        ),
        (["--text-column=review"], "no column 'review', only 'text', 'label'"),
        (["--label-column=stars"], "no column 'stars', only 'text', 'label'"),
        (["--engine=executorch", "--readout-layers=several"], "readout_layers: expected last in ExecuTorch"),
        (["--template=It was"], "template: expected {text} exactly once"),
        (["--verbalizer=great"], "verbalizer: expected a JSON object"),
        (['--verbalizer={"0": " terrible", "1": " terrific"}'], "' terrific' must be one token"),
        (['--verbalizer={"0": " terrible"}'], "one word for each label of the data ('0', '1'), got '0'"),
        (["--max-length=3"], "max_length: expected at least"),
        (["--model=./absent"], "model './absent': expected a directory"),
        (
            ["--model=no/such/name"],
            "model 'no/such/name': expected 'smollm2', a directory that is there, or a name",
        ),
        (["--targets=q_proj,nothing_proj"], "nothing_proj"),
        (["--layers=1:2"], "layers: expected FIRST <= LAST within 0:1 for this model, got '1:2'"),
        (["--batch-size=1000"], "batch_size: expected 1 to"),
        (["--eps=0"], "eps must be positive"),
        (["--eps=1e-50"], "eps must be positive and finite in float32, got 1e-50"),
        (["--lr=inf"], "lr: expected a finite number, got inf"),
        (["--lr=1e39"], "lr must be at least 0 and finite in float32"),
        (["--lr=-1"], "lr must be at least 0 and finite in float32, got -1.0"),
        (["--alpha=nan"], "alpha: expected a finite number, got nan"),
        (["--alpha=0"], "alpha: expected a number above 0, got 0.0"),
        (["--alpha=-16"], "alpha: expected a number above 0, got -16.0"),
        (["--weight-decay=nan"], "weight_decay: expected a finite number, got nan"),
        (["--steps=9223372036854775807"], "steps: expected at most 2147483647, got 9223372036854775807"),
        (["--eval-rows=9223372036854775808"], "eval_rows: expected at most 2147483647, got 92233720368547"),
        (["--momentum=1"], "momentum must be in [0, 1)"),
        (["--estimator=one_sided", "--normalize", "--queries=1"], "normalize needs at least 2 queries"),
        (
            ["--dtype=int8"],
            "for '--dtype': 'int8' is not one of 'auto', 'float32', 'bfloat16', 'float16' (see mob",
        ),
        (
            ["--steps=0"],
            "for '--steps': should be greater than or equal to 1, got '0' (see mobizo train --help)",
        ),
        (["--queries=many"], "Invalid value for '--queries': should be a valid integer, got 'many'"),
        (["--threads=100000"], "'--threads': should be less than or equal to 1024, got '100000'"),
        (["--program=model.pte"], "program: expected --engine executorch with it"),
        (["--lowering=delegated"], "lowering: delegated is for --engine executorch"),
        (["--context=64"], "context: 64 is for --engine executorch"),
        (["--model={inputs}/few_positions"], "max_length: expected at most 8, the positions of the model"),
        (["--model={inputs}/small_vocabulary"], "model: its tokenizer gives the token"),
        (["--template={text} {stars"], "template: expected names in braces"),
        (["--template={text} {label}"], "label_column: 'label' is in the prompt too"),
        (["--out=/dev/null/run"], "out: '/dev/null' is no directory"),
        (["--out=/proc/run"], "out: '/proc' cannot be written to"),
        ([f"--out={'n' * 300}"], "File name too long"),
        (["--journal=/proc/run.journal"], "journal: '/proc' cannot be written to"),
        (["--tensorboard=/proc/runs"], "tensorboard: '/proc' cannot be written to"),
        (["--tensorboard=/dev/null/runs"], "tensorboard: '/dev/null' is no directory"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_sentence(
    options: list[str], message: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text("an earlier run")
    before = contents(tmp_path)
    filled = [option.replace("{inputs}", str(inputs)) for option in options]
    assert train(inputs, tmp_path, "--overwrite", "--json", *filled) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert "Traceback" not in output.err
    assert output.out == ""
    assert contents(tmp_path) == before


def test_a_link_that_leads_nowhere_takes_no_results(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found before the run, not when its results are to be written."""
    (link := tmp_path / "link").symlink_to("nowhere")
    for option, message in (
        (f"--out={link}", f"out: '{link}' is no directory"),
        (f"--out={link / 'run'}", f"out: '{link}' is no directory"),
        (f"--tensorboard={link}", f"tensorboard: '{link}' is no directory"),
        (f"--journal={link}", f"journal: '{link}' is a link that leads nowhere; name another"),
    ):
        for more in ([], ["--resume"] if "journal" in option else ["--overwrite"]):
            assert train(inputs, tmp_path / "out", option, *more) == 2
            assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["link"]


@pytest.mark.parametrize("occupied", ["file", "directory"])
def test_out_is_not_overwritten_unasked(
    occupied: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    if occupied == "directory":
        target.mkdir()
        target = target / "metrics.json"
    target.write_text("an earlier run")
    assert train(inputs, tmp_path / "out") == 2
    assert "mobizo: out: " in capsys.readouterr().err
    assert target.read_text() == "an earlier run"


def test_a_run_is_made_by_one_process(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun does
    assert train(inputs, tmp_path / "out") == 2
    assert "mobizo: WORLD_SIZE: expected one process, got 2: several" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_adapter_of_another_model(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(inputs, tmp_path / "out", "--rank=4") == 0
    capsys.readouterr()
    adapter = f"--adapter={tmp_path / 'out' / 'adapter'}"
    assert run("eval", f"--model={inputs / 'wider'}", f"--data={inputs / 'data.csv'}", adapter, *PROMPT) == 2
    assert "mobizo: adapter: " in (err := capsys.readouterr().err)
    assert "lora_A.weight should be [4, 64] and is [4, 32]" in err


@pytest.fixture(scope="module")
def unequal(inputs: Path) -> str:
    """Data whose first 14 rows in each split are of one label: 300 to 8."""
    texts = [Example(f"The film is dull, part {n}.", "0") for n in range(300)]
    texts += [Example(f"The film is warm, part {n}.", "1") for n in range(8)]
    return f"--data={write_csv(inputs / 'unequal.csv', texts)}"


def test_rows_to_tune_on_have_every_label(
    unequal: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"--model={inputs / 'model'}"
    for option, least in (("train-rows", 22), ("validation-rows", 16)):
        message = f"expected at least {least}, to have rows of every label, got 14 without any of '1'"
        for command in ("train", "tokenize"):
            prompt = SHORT if command == "train" else PROMPT
            out = f"--out={tmp_path / 'out'}"
            assert run(command, model, *prompt, unequal, out, f"--{option}=14") == 2
            assert f"mobizo: {option.replace('-', '_')}: {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_test_rows_without_a_label_are_said(
    unequal: str, inputs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run("eval", f"--model={inputs / 'model'}", unequal, "--eval-rows=14", *PROMPT) == 0
    assert (
        "eval_rows: expected at least 16, to have rows of every label, got 14 without any of '1'"
        in caplog.text
    )
    assert "balanced accuracy     -" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_scored_over_the_base_that_it_was_tuned_over(
    dtype: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    quantised = ["--quantization=int8-dynamic", f"--dtype={dtype}"]
    assert train(inputs, tmp_path / "out", "--rank=4", *quantised) == 0
    capsys.readouterr()
    common = [
        f"--model={inputs / 'model'}",
        f"--data={inputs / 'data.csv'}",
        *PROMPT,
        "--eval-rows=8",
        "--json",
    ]
    adapter = f"--adapter={tmp_path / 'out' / 'adapter'}"
    assert run("eval", *common, adapter, *quantised) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["auc"] == pytest.approx(metrics["auc_after"], abs=1e-6)
    assert found["settings"]["quantization"] == metrics["settings"]["quantization"] == "int8-dynamic"


def test_missing_adapter(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"--model={inputs / 'model'}"
    options = [model, f"--data={inputs / 'data.csv'}", f"--adapter={tmp_path}", *PROMPT]
    assert run("eval", *options) == 2
    assert "holds no adapter_config.json" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"mobizo {mobizo_kernels.__version__}\n"


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("env", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mobizo_kernels"] == mobizo_kernels.__version__
    assert found["kernels"] == mobizo_kernels.cpu_capability()
    assert run("env") == 0
    assert f"kernels               {mobizo_kernels.cpu_capability()}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "engines"),
    [
        ([], ["executorch", "eager"]),
        (["--engine=eager"], ["eager"]),
        (["--engine=executorch"], ["executorch"]),
    ],
)
def test_demo_is_training_with_the_defaults(
    option: list[str],
    engines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "in_fresh_process", lambda work, settings: {"settings": as_json(settings)})
    monkeypatch.setattr(demo, "check_in_peft", lambda model, run: {"peft_accuracy": 0.5})
    monkeypatch.setattr(demo, "write", lambda settings: [])
    assert run("demo", f"--out={tmp_path}", "--json", *option) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == engines
    for engine in engines:
        context = demo.CONTEXT if engine == "executorch" else None
        expected = TrainSettings(
            engine=engine,  # type: ignore[arg-type]
            out=tmp_path / engine,
            overwrite=True,
            context=context,
        )
        assert found[engine]["settings"] == as_json(expected)
        assert found[engine]["settings"]["model"] == "smollm2"


def test_a_killed_process_is_one_sentence() -> None:
    with pytest.raises(InputError, match="^_exit: its process was killed"):
        in_fresh_process(os._exit, 9)


def test_what_libraries_say_as_they_load_is_not_printed() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "from mobizo_kernels.cli import main, train; main.run(['env'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "mobizo_kernels" in ran.stdout
    assert ran.stderr == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:3", [0, 1, 2, 3]),
        ("2:2", [2]),
        ("top-1", [3]),
        ("top-4", [0, 1, 2, 3]),
        ("top-67%", [1, 2, 3]),
        ("top-1%", [3]),
    ],
)
def test_layer_range(text: str, expected: list[int]) -> None:
    assert layer_range(text, 4) == expected


@pytest.mark.parametrize(
    "text",
    ["", "3", "a:b", "1:4", "2:1", "-1:2", " 1:2", "top-0", "top-5", "top-x", "top-+1", "top--1", "bottom-2"]
    + ["top-0%", "top--5%", "top-101%", "top-200%", "top-%", "top-1_0%", "top-6.5%"],
)
def test_bad_layer_range(text: str) -> None:
    with pytest.raises(InputError, match="^layers: expected"):
        layer_range(text, 4)
