"""The journal of the native trainer: of which program, who may write it, what no run may overwrite."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash import run_to_end, start_runner
from journals import first_version, head_of, parse, second_version
from programs import CANDIDATES, Unchanged, assert_same_adapter, eager_twin

import mobizo_kernels as mobizo
from mobizo_kernels.executorch import StepReport, Trainer
from mobizo_kernels.journal import JournalLost, read_journal, replay
from mobizo_kernels.run_defaults import RUN

STEPS: dict[str, Any] = {"steps": 8, "eval_every": 3}
RECORD = 28 + 4 * 2


def test_both_engines_write_one_header(program: Path, dataset: Path, tmp_path: Path) -> None:
    Trainer(program).train(dataset, **STEPS, run_seed=-3, journal=tmp_path / "native")
    zo = mobizo.ZerothOrder(
        eager_twin(), queries=2, eps=0.1, lr=RUN.lr, run_seed=-3, normalize=True, distribution="gaussian",
        candidate_tokens=CANDIDATES,
    )  # fmt: skip
    zo.open_journal(tmp_path / "eager", lr_schedule="linear", steps=8, batch_size=3)
    native, eager = (read_journal(tmp_path / name)[0] for name in ("native", "eager"))
    assert native.data is not None
    assert dataclasses.replace(native, data=None) == eager


def changed(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A journal with another header."""
    header, _, start = parse(content)
    change(header)
    return head_of(header, 3) + content[start:]


@pytest.mark.parametrize(
    ("change", "message", "replayed"),
    [
        (
            lambda h: h.update(lora_a="0" * 32),
            'lora_a is "[0-9a-f]{32}" here, but the journal has "0{32}"; the run began with another adapter',
            False,
        ),
        (lambda h: h.update(lora_b="0" * 32), 'lora_b is "[0-9a-f]{32}" here, but', False),
        (
            lambda h: h["parameters"][1].update(scaling=4.0),
            "scaling of .*v_proj.weight is 2.0 here, but .* 4.0",
            False,
        ),
        (
            lambda h: h["parameters"][1].update(stream=4),
            "of other parameters: their names, shapes or streams",
            False,
        ),
        (
            lambda h: h.update(invocation_tokens=[7, 8]),
            r"invocation_tokens is \[\] here, but .* \[7,8\]",
            False,
        ),
        (
            lambda h: h.update(base_fingerprint="00"),
            "base_fingerprint is .* here, but the journal has",
            False,
        ),
        (lambda h: h.update(candidate_tokens=[]), r"candidate_tokens is \[5,9\] here, but .* \[\]", True),
        (lambda h: h.update(base_dtype="int8"), 'base_dtype is "float32" here, but .* "int8"', True),
        (lambda h: h.update(data="0"), 'data is ".*" here, but the journal has "0"', True),
    ],
    ids=["A", "B", "scaling", "stream", "invocation", "base", "candidates", "dtype", "data"],
)
def test_a_journal_of_another_program(
    change: Callable[[dict[str, Any]], object],
    message: str,
    replayed: bool,
    program: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    """Refused to go on with; and to replay, where the LoRA-B would mean something else there."""
    journal, first, other = tmp_path / "journal", Trainer(program), Trainer(program)
    first.train(dataset, steps=2, eval_every=0, keep="last", journal=journal)
    content = changed(journal.read_bytes(), change)
    journal.write_bytes(content)
    with Unchanged(other), pytest.raises(ValueError, match=f"journal: .*{message}"):
        other.train(dataset, steps=2, eval_every=0, keep="last", journal=journal, resume=True)
    if replayed:
        assert other.replay(journal) == 2
        assert_same_adapter(other, first)
    else:
        with Unchanged(other), pytest.raises(ValueError, match=f"journal: .*{message}"):
            other.replay(journal)
    assert journal.read_bytes() == content


def test_earlier_versions(program: Path, dataset: Path, tmp_path: Path) -> None:
    """They are replayed, and not gone on with."""
    journal, first = tmp_path / "journal", Trainer(program)
    first.train(dataset, steps=2, eval_every=0, keep="last", journal=journal)
    header, records, _ = parse(journal.read_bytes())
    versions = {
        1: first_version(header, [record.coeffs for record in records]),
        2: second_version(journal.read_bytes()),
    }
    for version, content in versions.items():
        journal.write_bytes(content)
        for other in (Trainer(program), eager_twin()):
            steps = other.replay(journal) if isinstance(other, Trainer) else replay(other, journal)
            assert steps == 2
            assert_same_adapter(first, other)
        message = f"version {version} of the journal's format can be replayed, but not gone on with"
        with pytest.raises(ValueError, match=message):
            first.train(dataset, steps=2, journal=journal, resume=True)


def test_creating_does_not_race(program: Path, dataset: Path, tmp_path: Path) -> None:
    """When two runners begin one journal, one loses before its first step."""
    for attempt in range(4):
        journal = tmp_path / f"{attempt}.journal"
        both = [
            start_runner(
                ["train", program, dataset, "--quiet", "--steps", "6", "--eval-every", "0", "--keep", "last",
                 "--start", "zero", "--run-seed", str(seed), "--journal", journal,
                 "--adapter-out", tmp_path / f"{seed}.st"]
            )
            for seed in (1, 2)
        ]  # fmt: skip
        errors = [run.communicate()[1] for run in both]
        assert sorted(run.returncode for run in both) == [0, 2], errors
        winner = 1 if both[0].returncode == 0 else 2
        # Whether it sees the other's journal before it would make its own, or when it does.
        assert re.search("exists already|exists: name another journal, or resume", errors[2 - winner])
        header, records = read_journal(journal)
        assert header.run_seed == winner and len(records) == 6


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - RECORD)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove, "was removed or renamed while"),
        (replace, "was replaced by another file while"),
        (cut, "another program changed it, while"),
    ],
)
@pytest.mark.parametrize("last", [4, 7])
def test_a_lost_journal_ends_the_run(
    last: int, harm: Callable[[Path], None], message: str, program: Path, dataset: Path, tmp_path: Path
) -> None:
    """With the adapter that the steps until then deserve; also if it is lost after the last step."""
    path, trainer = tmp_path / "journal", Trainer(program)

    def on_step(report: StepReport) -> None:
        if report.step == last:
            shutil.copy(path, tmp_path / "copy")
            harm(path)

    with pytest.raises(JournalLost, match=f"journal: the journal .*{message}") as lost:
        trainer.train(dataset, **STEPS, journal=path, on_step=on_step)
    result: Any = lost.value.result
    assert (result.steps, result.stopped) == (last + 1, last < 7)
    assert result.evaluations[-1].step == last + 1
    model = eager_twin()
    assert replay(model, tmp_path / "copy", result.best_step) == result.best_step
    assert_same_adapter(trainer, model)


def test_the_runner_saves_what_a_lost_journal_had(program: Path, dataset: Path, tmp_path: Path) -> None:
    journal, out = tmp_path / "run.journal", tmp_path / "out.safetensors"
    run = start_runner(
        ["train", program, dataset, "--journal", journal, "--adapter-out", out, "--steps", "100000",
         "--eval-every", "0", "--keep", "last", "--print-every", "1"]
    )  # fmt: skip
    assert run.stdout is not None and run.stdout.readline()
    journal.rename(tmp_path / "elsewhere")
    _, errors = run.communicate()
    steps = len(read_journal(tmp_path / "elsewhere")[1])
    assert run.returncode == 1
    assert "run.journal: the journal was removed or renamed while the run was writing it; " in errors
    assert f"; stopped after {steps} steps, the adapter so far is in {out}" in errors
    saved, model = Trainer(program), eager_twin()
    saved.load_adapter(out)
    replay(model, tmp_path / "elsewhere")
    assert_same_adapter(saved, model)


def test_no_input_is_overwritten(program: Path, dataset: Path, tmp_path: Path) -> None:
    """Whatever the names that lead to it."""
    files = {
        "PROGRAM": shutil.copy(program, tmp_path / "program.pte"),
        "DATASET": dataset,
        "--adapter-in": tmp_path / "in.safetensors",
        "--journal": tmp_path / "run.journal",
    }
    Trainer(program).save_adapter(files["--adapter-in"])
    Trainer(program).train(dataset, **STEPS, journal=files["--journal"])
    before = {name: Path(path).read_bytes() for name, path in files.items()}
    train = ["train", files["PROGRAM"], dataset, "--adapter-in", files["--adapter-in"], "--steps", "3"]
    resume, out = ["--journal", files["--journal"], "--resume"], ["--adapter-out", tmp_path / "out"]
    (tmp_path / "deep").mkdir()
    for name, path in files.items():
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "hard").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(path)
        (tmp_path / "hard").hardlink_to(path)
        others = (path, tmp_path / "link", tmp_path / "hard", tmp_path / "deep" / ".." / Path(path).name)
        for other in others:
            commands: dict[str, list[str | Path]] = {
                "--adapter-out": [*train, *resume, "--adapter-out", other],
                "--log": [*train, *resume, *out, "--log", other],
                "--journal": [*train, *out, "--journal", other],
            }
            if name == "--journal":
                del commands["--journal"]
                commands["replay"] = ["replay", program, files["--journal"], "--adapter-out", other]
            for option, command in commands.items():
                run = start_runner(command)
                _, errors = run.communicate()
                blamed, of = ("--adapter-out", "JOURNAL") if option == "replay" else (option, name)
                assert run.returncode == 2
                assert f"{blamed}: {other} is the same file as {of}: name another one" in errors
    run = start_runner([*train, "--adapter-out", tmp_path / "new", "--log", tmp_path / "deep" / ".." / "new"])
    assert "--log: " in run.communicate()[1] and run.returncode == 2
    assert {name: Path(path).read_bytes() for name, path in files.items()} == before
    assert not (tmp_path / "out").exists() and not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="the same file as the program"):
        Trainer(files["PROGRAM"]).save_adapter(tmp_path / "program.pte")
    run_to_end([*train, "--adapter-out", tmp_path / "out", "--log", tmp_path / "log"])
