"""Ray: two actors and a driver without a model, one of them lost on the way; make federated runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="needs Ray, which has a place of its own: make federated")

import ray
import tiny_texts
from federation import SETTINGS, labelled_rows
from journals import adapters, assert_same_adapters, wrapped

import mobizo_kernels as mobizo
from mobizo_kernels.integrations.ray import RayRounds, WorkerLost
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.zo import ZerothOrder

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": PATHS}})
    yield
    ray.shutdown()


@pytest.fixture
def rows(rng: torch.Generator) -> list[dict[str, torch.Tensor]]:
    return [labelled_rows(rng, 3), labelled_rows(rng, 6)]


def group(rows: list[dict[str, torch.Tensor]], journal: Path) -> RayRounds:
    def make(worker: int) -> ZerothOrder:
        return mobizo.ZerothOrder(wrapped(), **SETTINGS)

    return RayRounds(2, make, lambda worker, step: rows[worker], journal=journal)


def tuned(zo: ZerothOrder) -> dict[str, torch.Tensor]:
    return adapters(zo.model)


def test_two_actors_make_the_steps_of_one_machine(rows: Any, tmp_path: Path) -> None:
    central = mobizo.ZerothOrder(wrapped(), **SETTINGS)
    batch = {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
    with group(rows, tmp_path / "run") as workers:
        for _ in range(2):
            made = workers.step()
            assert made.weights == {0: 3, 1: 6} and not made.refused
            assert made.loss == pytest.approx(central.step(batch).loss, rel=1e-5)
        # One is lost: the step goes on without it, and then it is back with all records.
        ray.kill(workers.actors[1])
        made = workers.step()
        assert made.weights == {0: 3} and "Actor" in made.refused[1]
        assert workers.step().weights == {0: 3, 1: 6}
        assert workers.update() == {}
        replayed = wrapped()
        assert replay(replayed, tmp_path / "run") == 4
        for worker in (0, 1):
            assert_same_adapters(replayed, workers.call(tuned, worker))
        workers.restart = False
        ray.kill(workers.actors[1])
        with pytest.raises(WorkerLost, match="worker 1 was lost: ") as raised:
            workers.step()
        assert raised.value.worker == 1
    assert len(read_journal(tmp_path / "run")[1]) == 4


def test_what_is_out_of_range(rows: Any, tmp_path: Path) -> None:
    made = partial(RayRounds, make=None, batches=None, journal=tmp_path / "run")
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        made(0)
    with pytest.raises(ValueError, match="min_answers must be from 1 to 2, the workers, got 3"):
        made(2, min_answers=3)


def test_the_example_runs(tmp_path: Path) -> None:
    model = tiny_texts.save_model(tmp_path / "model")
    data = tiny_texts.write_csv(tmp_path / "rows.csv", tiny_texts.reviews(8))
    command = [
        sys.executable,
        str(ROOT / "examples/ray/reviews.py"),
        str(model),
        str(data),
        str(tmp_path),
        "3",
    ]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert len(read_journal(tmp_path / "run.journal")[1]) == 3
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
