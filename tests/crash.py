"""Kills a run of mobizo_runner at random moments, resumes it each time, and compares what comes out.

    python tests/crash.py --kills 50

Every adapter has to be, to the byte, that of a run that was never interrupted. Prints what happened; exit
code 0 if all were.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import executorch

import mobizo_kernels
from mobizo_kernels.zo.journal import read_journal

RUNNER = Path(mobizo_kernels.__file__).parent / "executorch" / "mobizo_runner"


def start_runner(arguments: Sequence[str | Path]) -> subprocess.Popen[str]:
    """The runner itself, not a Python that becomes it, so that a signal meets it at once."""
    libraries = Path(next(iter(executorch.__path__)), "lib")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    return subprocess.Popen(
        [RUNNER, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
