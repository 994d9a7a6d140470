"""mobizo.h: what the Python face and the command line do, its errors, and a program in C."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import c_interface as c
import numpy as np
import pytest
import torch
from c_process import LIBRARIES, PACKAGE, apart
from crash import run_to_end
from programs import other_program, tiny_dataset, tiny_program
from tokenizers_of_kinds import saved

import mobizo_kernels
from mobizo_kernels.data import read_dataset
from mobizo_kernels.executorch import StepReport, Trainer, Validation, _trainer
from mobizo_kernels.training.readout import numbers_in_turn

VERSION = re.escape(mobizo_kernels.__version__)
EXAMPLE = Path(__file__).parents[2] / "examples/c/train.c"
SETTINGS: dict[str, Any] = {"steps": 6, "lr": 0.01, "eps": 0.01, "lr_schedule": "cosine", "run_seed": -3}


def in_turn(folder: Path, rng: torch.Generator) -> Path:
    """A data set that says which rows to read out."""
    drawn = rng.get_state()
    plain = read_dataset(tiny_dataset(folder / "plain.safetensors", rng))
    rng.set_state(drawn)
    turn = tuple(numbers_in_turn(plain.train, 3))
    return tiny_dataset(folder / "in_turn.safetensors", rng, in_turn=turn)


def flat(trainer: Trainer) -> list[float]:
    """Every LoRA-B, one after the other."""
    values = [value.ravel() for name, value in trainer.adapter().items() if ".lora_B." in name]
    return np.concatenate(values).tolist()


def test_a_run_is_that_of_python_and_of_the_command_line(
    program: Path, dataset: Path, tmp_path: Path
) -> None:
    names = ("c", "python", "runner")
    adapters = {name: tmp_path / f"{name}.safetensors" for name in names}
    journals = {name: tmp_path / f"{name}.journal" for name in names}
    settings = {**SETTINGS, "eval_every": 2}
    run = apart(c.train_and_save, program, dataset, adapters["c"], journal=str(journals["c"]), **settings)

    trainer, steps, validations = Trainer(program), list[StepReport](), list[Validation]()
    seen = {"on_step": steps.append, "on_evaluation": validations.append}
    result = trainer.train(dataset, **settings, journal=journals["python"], **seen)
    trainer.save_adapter(adapters["python"])
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    files = [f"--adapter-out={adapters['runner']}", f"--journal={journals['runner']}"]
    run_to_end(["train", program, dataset, "--start=zero", *files, *options])

    assert len({path.read_bytes() for path in adapters.values()}) == 1
    assert len({path.read_bytes() for path in journals.values()}) == 1
    assert (run.end, run.warnings) == ("OK", [])
    for told, step in zip(run.steps, steps, strict=True):
        assert (told["user"], told["step"], told["steps"]) == (42, step.step, 6)
        for name in ("loss", "lr", "update_norm", "skipped", "unsteady"):
            assert told[name] == getattr(step, name), name
        for name in ("losses", "projected_gradients"):
            np.testing.assert_array_equal(told[name], getattr(step, name))
    assert run.validations == [vars_of(validation) for validation in validations]
    kept = next(v for v in run.validations if v["step"] == result.best_step)
    for name in ("steps", "stopped", "resumed_steps", "skipped_steps", "best_step"):
        assert run.result[name] == getattr(result, name), name
    assert run.result["evaluations"] == len(validations)
    assert [run.result[name] for name in c.SCORES] == [kept[name] for name in c.SCORES]


def vars_of(validation: Validation) -> dict[str, float]:
    return {name: getattr(validation, name) for name in ("step", *c.SCORES)}


def test_runs_are_cancelled(program: Path, dataset: Path) -> None:
    """The adapter is that of the last step."""
    settings = {**SETTINGS, "keep": "last", "eval_every": 2}
    runs = apart(c.cancelled_runs, program, dataset, **settings)
    for name, made, end in (
        ("on_step", 3, "CANCELLED: cancelled by a callback after 3 steps"),
        ("on_evaluation", 4, "CANCELLED: cancelled by a callback after 4 steps"),
        ("cancel", 4, "CANCELLED: cancelled after 4 steps"),
        ("to the end", 6, "OK"),
    ):
        run, values = runs[name]
        assert (run.end, len(run.steps)) == (end, made), name
        assert (run.result["steps"], run.result["best_step"]) == (made, made)
        trainer = Trainer(program)
        with pytest.raises(StopIteration) if made < 6 else nullcontext():
            trainer.train(dataset, **settings, on_step=stop_after(made))
        assert values == flat(trainer), name


def stop_after(steps: int) -> Callable[[StepReport], None]:
    def on_step(report: StepReport) -> None:
        if report.step + 1 == steps < 6:
            raise StopIteration

    return on_step


def test_forwards_are_cancelled(program: Path, dataset: Path) -> None:
    """Between two of them."""
    scores, training, again = apart(c.cancelled_forwards, program, dataset)
    assert scores == "CANCELLED: cancelled before the last row was scored"
    assert re.fullmatch(r"CANCELLED: cancelled after \d+ steps?", training)
    assert again == "OK"


def test_a_lost_journal_ends_the_run(program: Path, dataset: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "keep": "last", "eval_every": 0}
    run, values = apart(c.lost_journal, program, dataset, tmp_path / "journal", **settings)["lost"]
    assert run.end.startswith("JOURNAL_LOST: ") and "journal was removed" in run.end
    made = run.result["steps"]
    assert (len(run.steps), run.result["stopped"], 3 <= made < 6) == (made, 1, True)
    trainer = Trainer(program)
    with pytest.raises(StopIteration):
        trainer.train(dataset, **settings, on_step=stop_after(made))
    assert values == flat(trainer)


def test_a_cancelled_run_goes_on(program: Path, dataset: Path, tmp_path: Path) -> None:
    journal, adapter = str(tmp_path / "journal"), tmp_path / "adapter.safetensors"
    options = {**SETTINGS, "eval_every": 2, "journal": journal}
    with pytest.raises(StopIteration):
        Trainer(program).train(dataset, **options, on_step=stop_after(3))
    run = apart(c.train_and_save, program, dataset, adapter, **options, resume=1)
    assert (run.end, run.result["steps"], run.result["resumed_steps"], len(run.steps)) == ("OK", 6, 3, 3)
    whole = Trainer(program)
    whole.train(dataset, **SETTINGS, eval_every=2)
    whole.save_adapter(tmp_path / "whole.safetensors")
    assert adapter.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    for until, steps in ((-1, 6), (2, 2), (0, 0)):
        again = Trainer(program)
        assert again.replay(journal, until=steps) == steps
        assert apart(c.replayed, program, journal, until) == (steps, flat(again))


def test_a_callback_may_not_use_its_program(program: Path, dataset: Path) -> None:
    *inside, end, closed = apart(c.calls_in_a_callback, program, dataset)
    assert inside == ["BUSY: program is at work: use it again when the call that it is in has returned"] * 3
    assert (end, closed) == ("CANCELLED: cancelled by a callback after 1 step", "OK")


def test_two_programs_in_two_threads(program: Path, dataset: Path) -> None:
    first, second, alone = apart(c.in_two_threads, program, dataset, **SETTINGS, eval_every=3)
    assert first == second == alone and any(alone)


def test_scores_and_adapters(program: Path, dataset: Path, trainer: Trainer, tmp_path: Path) -> None:
    adapter, saved_again = tmp_path / "adapter.safetensors", tmp_path / "again.safetensors"
    trainer.save_adapter(adapter)
    found = apart(c.scores_and_adapters, program, dataset, adapter, saved_again)
    assert found["description"] == trainer.description.text
    assert saved_again.read_bytes() == adapter.read_bytes()
    assert found["values"] == flat(trainer) and any(found["values"])
    for split, rows in (("test", 0), ("validation", 3)):
        numbers, scores, labels = found[split]
        expected = trainer.evaluate(dataset, split=split, rows=rows)
        for name in ("rows", "loss", "accuracy"):
            assert numbers[name] == getattr(expected, name)
        np.testing.assert_equal(numbers["balanced_accuracy"], expected.balanced_accuracy)
        np.testing.assert_array_equal(np.reshape(scores, expected.scores.shape), expected.scores)
        np.testing.assert_array_equal(labels, expected.labels)
    kinds = [json.loads(kind) for kind in found["kinds"]]
    assert [kind["kind"] for kind in kinds] == ["program", "data set", "adapter"]
    assert kinds[0]["description"] == json.loads(trainer.description.text)
    assert found["version"] == mobizo_kernels.__version__


def test_readout_is_that_of_python(program: Path, rng: torch.Generator, tmp_path: Path) -> None:
    dataset = in_turn(tmp_path, rng)
    trainer, adapter = Trainer(program), tmp_path / "c.safetensors"
    expected = trainer.read_out(dataset, rows=10)
    trainer.save_adapter(tmp_path / "python.safetensors")
    found = apart(c.read_out, program, dataset, 10, adapter)
    assert adapter.read_bytes() == (tmp_path / "python.safetensors").read_bytes()
    assert (found["rank"], found["rows"]) == (expected.rank, expected.rows)
    assert found["loss_before"] == expected.losses[None] and found["loss"] == expected.losses[expected.ridge]
    assert math.isnan(found["ridge"]) if expected.ridge is None else found["ridge"] == expected.ridge


def test_tokenizer(tmp_path: Path) -> None:
    (_, path), words = saved("llama2", tmp_path), "Zo wørds, in Ünïcode 👍🏽"
    native = _trainer.NativeTokenizer(path)
    found = apart(c.tokens, path, words)
    assert found["ids"] == native.encode(words).tolist()
    assert found["text"] == native.decode(found["ids"])
    assert (found["size"], found["token"]) == (native.vocabulary_size(), -1)
    encode, missing, other, closed = found["refused"]
    assert encode == "INVALID: the text is not UTF-8 at byte 0"
    assert re.fullmatch("SYSTEM: .*/nowhere/tokenizer.json: No such file or directory", missing)
    assert other == "INVALID: program is no open program: it was closed, or is a handle of another kind"
    assert closed == "INVALID: tokenizer is no open tokenizer: it was closed, or is a handle of another kind"


CLOSED = "INVALID: program is no open program: it was closed, or is a handle of another kind"


def test_what_is_refused(program: Path, dataset: Path, tmp_path: Path) -> None:
    """Each by its status and a sentence; the program works on."""
    before = program.read_bytes()
    told = apart(c.refusals, program, dataset, tmp_path)
    expected = {
        "no place for the handle": "INVALID: program must not be NULL",
        "no path": "INVALID: path must not be NULL",
        "no file": "SYSTEM: .*nowhere.*: No such file or directory",
        "another file": f"INVALID: {re.escape(str(dataset))}.*",
        "threads": "INVALID: threads must be from 0 to 1024, got -1",
        "no program": "INVALID: program must not be NULL",
        "closed": CLOSED,
        "closed twice": CLOSED,
        "closed and cancelled": CLOSED,
        "made up": CLOSED,
        "nothing to close": "OK",
        "no data set": "INVALID: dataset must not be NULL",
        "missing data set": "SYSTEM: .*nowhere.*: No such file or directory",
        "no options to set": "INVALID: options must not be NULL",
        "small options": r"INVALID: options.size must be at least 112, got 8: .*",
        "steps": "INVALID: steps must be .*, got 0",
        "schedule": "INVALID: lr_schedule must be .*, got 'step'",
        "no schedule": "INVALID: options.lr_schedule must not be NULL",
        "flag": "INVALID: options.resume must be 0 or 1, got 2",
        "eval_every": "INVALID: eval_every must be at least 0, got -2",
        "size": "INVALID: options.size must be at least 112, got 8: .*",
        "later, of its default": "INVALID: steps must be .*, got 0",
        "later": f"INVALID: options has members that this version, {VERSION}, does not know",
        "result of no size": "INVALID: result.size must be at least 80, got 0: .*",
        "callbacks of no size": "INVALID: callbacks.size must be at least 40, got 0: .*",
        "split": "INVALID: .*trial.*",
        "rows": "INVALID: rows must be at least 0, got -1",
        "count": r"INVALID: count must be \d+, the numbers of every LoRA-B, got 3",
        "not finite": "INVALID: values must be finite, got nan at 1",
        "no values": "INVALID: values must not be NULL",
        "onto the program": "INVALID: .*path.*",
        "into nothing": "SYSTEM: .*No such file or directory",
        "another adapter": f"INVALID: {re.escape(str(dataset))}.*",
        "no journal": f"INVALID: {re.escape(str(dataset))}.*",
        "rows to read out": "INVALID: rows must be at least 0, got -1",
        "no place for a text": "INVALID: json must not be NULL",
        "no ids": "INVALID: tokenizer must not be NULL",
        "still works": "OK",
    }
    assert told.keys() == expected.keys()
    wrong = {name: said for name, said in told.items() if not re.fullmatch(expected[name], said)}
    assert wrong == {}
    assert program.read_bytes() == before


def test_another_program_refuses_its_adapter(
    program: Path, trainer: Trainer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trainer.save_adapter(tmp_path / "adapter.safetensors")
    other = other_program(tmp_path_factory)
    with pytest.raises(c.CError, match="adapter.safetensors") as caught:
        apart(c.scores_and_adapters, other, program, tmp_path / "adapter.safetensors", tmp_path / "out")
    assert (caught.value.status, caught.value.errno) == ("INVALID", 0)


# ---- the library itself ---


def header() -> str:
    return (PACKAGE / "mobizo.h").read_text()


@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils are not installed")
def test_nothing_else_is_exported() -> None:
    command = ["nm", "--dynamic", "--defined-only", PACKAGE / "libmobizo.so"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in listed.splitlines()}
    assert exported == set(re.findall(r"^MOBIZO_API .*?\b(mobizo_\w+)\(", header(), re.MULTILINE))


def test_the_header_is_of_this_version() -> None:
    assert f'#define MOBIZO_VERSION "{mobizo_kernels.__version__}"' in header()


@pytest.fixture(scope="module")
def compile_c(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")

    def compiled(source: Path) -> Path:
        program = tmp_path_factory.mktemp("c") / source.stem
        strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{PACKAGE}"]
        links = [f"-L{PACKAGE}", "-lmobizo", f"-Wl,-rpath,{PACKAGE}", f"-Wl,-rpath-link,{LIBRARIES}"]
        subprocess.run([compiler, *strict, source, "-o", program, *links], check=True)
        return program

    return compiled


def run_c(program: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(LIBRARIES)}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, env=environment, text=True, capture_output=True)


def test_structs_have_the_sizes_of_a_c_compiler(compile_c: Callable[..., Path], tmp_path: Path) -> None:
    """And so the callers that lay them out by hand, as the ones above do, are right."""
    sizes = apart(c.structs)
    prints = "".join(f'printf("{name} %d\\n", (int)sizeof({name}));' for name in sizes)
    (tmp_path / "sizes.c").write_text(
        f'#include <stdio.h>\n#include "mobizo.h"\nint main(void) {{ {prints} return 0; }}\n'
    )
    printed = run_c(compile_c(tmp_path / "sizes.c")).stdout
    assert dict(line.split() for line in printed.splitlines()) == {k: str(v) for k, v in sizes.items()}


def test_the_example_trains(
    compile_c: Callable[..., Path], program: Path, dataset: Path, tmp_path: Path
) -> None:
    example, adapter, journal = compile_c(EXAMPLE), tmp_path / "adapter.safetensors", tmp_path / "journal"
    done = run_c(example, program, dataset, adapter, journal, 5)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall(r"^step \d/5: loss ", done.stdout, re.MULTILINE)) == 5
    trainer = Trainer(program)
    trainer.train(dataset, steps=5)
    trainer.save_adapter(tmp_path / "python.safetensors")
    assert adapter.read_bytes() == (tmp_path / "python.safetensors").read_bytes()
    failed = run_c(example, program, tmp_path / "none", adapter, journal)
    assert failed.returncode == 1 and "MOBIZO_SYSTEM" in failed.stderr and "none" in failed.stderr


def test_a_delegated_program(dataset: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    program = tiny_program(tmp_path_factory, distribution="outer", lowering="delegated")
    run = apart(c.train_and_save, program, dataset, tmp_path / "c.safetensors", **SETTINGS)
    trainer = Trainer(program)
    trainer.train(dataset, **SETTINGS)
    trainer.save_adapter(tmp_path / "python.safetensors")
    assert run.end == "OK"
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "python.safetensors").read_bytes()
