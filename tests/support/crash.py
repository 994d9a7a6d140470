"""Kills runs, resumes them each time, and compares what comes out: of mobizo_runner at random moments, of
`mobizo train` in torch in the third time that it goes through its rows.

    python tests/support/crash.py --kills 50

Every adapter has to be, to the byte, that of a run that was never interrupted. Prints what happened; exit
code 0 if all were.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from tiny_texts import TEMPLATE, WORDS, reviews, save_model, write_csv

import mobizo_kernels
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.train import train
from mobizo_kernels.journal import read_journal

RUNNER = Path(mobizo_kernels.__file__).parent / "executorch" / "mobizo_runner"

# Children of a process that has imported everything and computed nothing: they start at once, and no thread
# that a library had before the fork is missed in them.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["mobizo_kernels.cli.train"])


def start_runner(
    arguments: Sequence[str | Path],
    stdout: int | IO[Any] = subprocess.PIPE,
    stdin: int | IO[Any] | None = None,
    shell: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """The runner itself, not a Python that becomes it, so that a signal meets it at once.

    Args:
        arguments: of the runner.
        stdout: as in `subprocess`, and so the next.
        stdin: see above.
        shell: a script that starts it as `exec "$@"`, for what only a shell can do.
        environment: variables that it has more.
    """
    import executorch

    libraries = Path(next(iter(executorch.__path__)), "lib")
    variables = {**os.environ, "LD_LIBRARY_PATH": str(libraries), **(environment or {})}
    before = [] if shell is None else ["sh", "-c", shell, "sh"]
    return subprocess.Popen(
        [*before, RUNNER, *arguments],
        env=variables,
        text=True,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def run_to_end(arguments: Sequence[str | Path]) -> None:
    """Raises RuntimeError, with what the runner said, unless it succeeds."""
    process = start_runner(arguments)
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"mobizo_runner exited with {process.returncode}: {errors.strip()}")


@dataclass(frozen=True)
class Outcome:
    """What :func:`crash_runs` saw.

    Attributes:
        kills: how often the runner was killed at work.
        runs: that were completed and had the right adapter.
        resumed_at: steps in the journal after each kill, before the resume.
    """

    kills: int
    runs: int
    resumed_at: list[int]


def crash_runs(
    program: Path, dataset: Path, folder: Path, *, kills: int, steps: int, rng: random.Random
) -> Outcome:
    """Kill runs at moments spread evenly over them until there were `kills`, and let the last one end.

    Args:
        program: a .pte.
        dataset: that fits it.
        folder: empty; for journals and adapters.
        kills: how many.
        steps: of a run.
        rng: of the moments.

    Raises:
        AssertionError: a journal lost steps, or an adapter is not that of the uninterrupted run.
        RuntimeError: the runner failed.
    """

    def arguments(run: int | str) -> list[str | Path]:
        files = ["--journal", folder / f"{run}.journal", "--adapter-out", folder / f"{run}.safetensors"]
        settings = ["--steps", str(steps), "--eval-every", str(steps // 5), "--quiet", "--resume"]
        return ["train", program, dataset, *files, *settings]

    start = time.monotonic()
    run_to_end(arguments("whole"))
    duration = time.monotonic() - start
    expected = (folder / "whole.safetensors").read_bytes()
    killed, run, recorded, resumed_at = 0, 0, 0, list[int]()
    while killed < kills:
        journal, adapter = folder / f"{run}.journal", folder / f"{run}.safetensors"
        process = start_runner(arguments(run))
        try:
            _, errors = process.communicate(timeout=rng.uniform(0, duration))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            now = len(read_journal(journal)[1]) if journal.exists() else 0
            assert now >= recorded, f"the journal had {recorded} steps and has {now}"
            recorded = now
            resumed_at.append(now)
            assert not adapter.exists() or adapter.read_bytes() == expected
            continue
        if process.returncode != 0:
            raise RuntimeError(f"mobizo_runner exited with {process.returncode}: {errors.strip()}")
        assert adapter.read_bytes() == expected, f"run {run} has another adapter"
        run, recorded = run + 1, 0
    run_to_end(arguments(run))
    assert (folder / f"{run}.safetensors").read_bytes() == expected, f"run {run} has another adapter"
    return Outcome(killed, run + 1, resumed_at)


def tiny_task(folder: Path) -> dict[str, Any]:
    """Options of `mobizo train` in torch, on a tiny model: 24 rows, three steps to go through them."""
    return {
        "model": str(save_model(folder / "model")),
        "data": str(write_csv(folder / "data.csv", reviews())),
        "dtype": "float32",
        "template": TEMPLATE,
        "verbalizer": json.dumps(WORDS),
        "train_rows": 24,
        "batch_size": 8,
        "queries": 2,
        "lr": 0.4,
        "eval_rows": 10,
        "validation_rows": 8,
        "eval_every": 2,
        "threads": 1,
        "stop_unsteady": False,  # all runs make all steps
    }


def crash_training(task: Mapping[str, Any], folder: Path, *, steps: int, stops: Sequence[int]) -> list[int]:
    """Kill a run of `mobizo train` in torch each time that its journal has come to one of `stops`, and let it
    end.

    Args:
        task: options of it.
        folder: empty; for the run and one that is not interrupted.
        steps: of the run.
        stops: numbers of steps, rising, below `steps`.

    Returns:
        The steps in the journal after each kill.

    Raises:
        AssertionError: the journal or the adapter is not that of the uninterrupted run.
        RuntimeError: a run failed.
    """

    def start(run: str) -> BaseProcess:
        (folder / run).mkdir(exist_ok=True)
        out, journal = folder / run / "out", folder / run / "journal"
        settings = TrainSettings(**task, steps=steps, out=out, journal=journal, resume=True)
        process = CHILDREN.Process(target=train, args=(settings,), daemon=True)
        process.start()
        return process

    def run_on(run: str, until: int = 0) -> None:
        """To its end, or until the file has that size."""
        process, journal = start(run), folder / run / "journal"
        while process.is_alive():
            if until and journal.exists() and journal.stat().st_size >= until:
                process.kill()
                process.join()
                return
            process.join(0.001)
        if process.exitcode != 0 or until:
            raise RuntimeError(f"the run {run} was to end at byte {until}, exit code {process.exitcode}")

    def results(run: str) -> tuple[bytes, bytes]:
        weights = folder / run / "out" / "adapter" / "adapter_model.safetensors"
        return (folder / run / "journal").read_bytes(), weights.read_bytes()

    run_on("whole")
    expected = results("whole")
    record = 28 + 4 * task["queries"]
    header = len(expected[0]) - steps * record
    resumed_at: list[int] = []
    for stop in stops:
        run_on("killed", header + max(stop, *resumed_at[-1:], 0) * record + 1)
        resumed_at.append(len(read_journal(folder / "killed" / "journal")[1]))
    run_on("killed")
    assert results("killed") == expected, f"killed at steps {resumed_at}, it has another journal or adapter"
    return resumed_at


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    import torch
    from programs import DEFAULTS, export_quietly, lora_config, tiny_dataset, tiny_llama

    with tempfile.TemporaryDirectory() as scratch:
        program, dataset = Path(scratch, "tiny.pte"), Path(scratch, "data.safetensors")
        export_quietly(tiny_llama(1), program, targets=lora_config(), **{**DEFAULTS, "dynamic_length": False})
        tiny_dataset(dataset, torch.Generator().manual_seed(options.seed))
        outcome = crash_runs(
            program, dataset, Path(scratch), kills=options.kills, steps=options.steps,
            rng=random.Random(options.seed),
        )  # fmt: skip
    print(f"{outcome.kills} kills at steps {sorted(outcome.resumed_at)} of {options.steps};")
    print(f"{outcome.runs} runs completed, every adapter that of the uninterrupted run")

    rules: list[dict[str, Any]] = [
        {},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"optimizer": "adam", "lr": 0.05},
    ]
    rng = random.Random(options.seed)
    for rule in rules:
        with tempfile.TemporaryDirectory() as scratch:
            task = {**tiny_task(Path(scratch)), "train_rows": None, **rule}
            third = range(2 * 12, 3 * 12)  # 100 rows, 96 of them in 12 steps
            stops = sorted(rng.sample(third, min(len(third), max(1, options.kills // len(rules) // 4))))
            resumed_at = crash_training(task, Path(scratch), steps=40, stops=stops)
        print(f"mobizo train {rule}: killed at steps {resumed_at} of 40, the adapter that of the whole run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
