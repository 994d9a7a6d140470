"""Two trainers in one process at once, and a process that is forked from one with a trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from programs import assert_same_adapter, tiny_program

from mobizo_kernels.executorch import StepReport, Trainer

STEPS: dict[str, Any] = {"steps": 6, "eval_every": 3, "keep": "last"}


def test_two_trainers_in_two_threads(program: Path, dataset: Path, tmp_path: Path) -> None:
    """Of one program and with different seeds: journals and adapters are those of trainers alone."""
    barrier = Barrier(2)

    def together(_: StepReport) -> None:
        barrier.wait(60)

    def train(seed: int, name: str, **options: Any) -> Trainer:
        trainer = Trainer(program)
        trainer.train(dataset, run_seed=seed, journal=tmp_path / f"{name}-{seed}", **STEPS, **options)
        return trainer

    alone = [train(seed, "alone") for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(train, seed, "both", on_step=together) for seed in (1, 2)]
        both = [run.result(120) for run in runs]
    for seed, one, other in zip((1, 2), alone, both, strict=True):
        assert_same_adapter(one, other)
        assert (tmp_path / f"alone-{seed}").read_bytes() == (tmp_path / f"both-{seed}").read_bytes()


def test_a_program_outlives_another_of_the_same_weights(
    dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """XNNPACK packs the same bytes in two ways for them, and keeps what it has packed by the bytes alone."""
    first, second = (
        tiny_program(tmp_path_factory, quantization=kind, dynamic_length=False)
        for kind in ("int8", "int8-dynamic")
    )
    alone = [Trainer(path).evaluate(dataset).loss for path in (first, second)]
    assert alone[0] != alone[1]
    for left, right in ((0, 1), (1, 0), (0, 0)):
        closed, kept = Trainer((first, second)[left]), Trainer((first, second)[right])
        assert [closed.evaluate(dataset).loss, kept.evaluate(dataset).loss] == [alone[left], alone[right]]
        del closed
        assert kept.evaluate(dataset).loss == alone[right]


FORK = """
import os, sys
from mobizo_kernels.executorch import Trainer
program, dataset = sys.argv[1:]

def train(trainer):
    return trainer.train(dataset, steps=1, eval_every=0, keep="last")

child = os.fork()
if child == 0:  # before a program is open: as in any process
    train(Trainer(program))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
trainer = Trainer(program)
train(trainer)
child = os.fork()
if child == 0:
    for work in (lambda: train(trainer), lambda: Trainer(program)):
        try:
            work()
        except ValueError as error:
            print(error, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
train(trainer)
"""


def test_a_forked_child_says_so(program: Path, dataset: Path) -> None:
    """Where the threads of the pool are missing, a call would wait for them without an end."""
    command = [sys.executable, "-c", FORK, program, dataset]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        output, _ = done.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGKILL)
        done.wait()
        pytest.fail("the child hangs", pytrace=False)
    assert done.returncode == 0
    said = output.splitlines()
    assert len(said) == 2
    assert all("this process was forked from one that had a program open" in line for line in said)
