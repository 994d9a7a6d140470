"""Flower: eight nodes of a grid in one process, through Flower's own bytes; make federated runs it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="needs Flower, which has a place of its own: make federated")

import tiny_texts
from federation import SETTINGS, labelled_rows
from flower_grid import LocalGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod, message_size_mod
from journals import adapters, assert_same_adapters, wrapped

import mobizo_kernels as mobizo
from mobizo_kernels.integrations import flower
from mobizo_kernels.integrations.flower import SeedsAndScalars, client_app
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.rounds import Participant, payloads
from mobizo_kernels.zo import ZerothOrder

NODES = 8
EXAMPLE = Path(__file__).parents[2] / "examples/flower/reviews.py"
runs = itertools.count(1)


class Nodes:
    """Nodes with other labels each, of unequal size."""

    def __init__(self, rng: torch.Generator, nodes: int = NODES) -> None:
        self.rows = [labelled_rows(rng, 2 + node, label=node % 2) for node in range(nodes)]
        self.made = 0
        app = client_app(self.make, self.batch, evaluate=self.evaluate)
        self.grid = LocalGrid(app, nodes, run_id=next(runs))

    def make(self, context: Context) -> ZerothOrder:
        self.made += 1
        return mobizo.ZerothOrder(wrapped(), **SETTINGS, candidate_tokens=[3, 4])

    def batch(self, context: Context, step: int) -> Any:
        return self.rows[int(context.node_config["partition-id"])]

    def evaluate(self, zo: ZerothOrder, context: Context) -> dict[str, float]:
        return {"steps": zo.steps, "num-examples": 1 + int(context.node_config["partition-id"])}


@pytest.fixture
def nodes(rng: torch.Generator) -> Nodes:
    return Nodes(rng)


def test_the_server_makes_the_steps_of_one_machine(nodes: Nodes, tmp_path: Path) -> None:
    strategy = SeedsAndScalars(tmp_path / "run", fraction_evaluate=0.5)
    result = strategy.start(nodes.grid, num_rounds=3)
    assert not result.arrays and nodes.made == 1
    central = nodes.make(None)
    batch = {name: torch.cat([rows[name] for rows in nodes.rows]) for name in nodes.rows[0]}
    for round, made in enumerate(strategy.rounds, 1):
        step = central.step(batch)
        assert made.loss == pytest.approx(step.loss, rel=1e-5)
        metrics = result.train_metrics_clientapp[round]
        assert dict(metrics) == {"step": round - 1, "loss": made.loss, "weight": sum(range(2, 10)),
                                 "answers": NODES, "refused": 0, "skipped": 0}  # fmt: skip
        assert result.evaluate_metrics_clientapp[round]["steps"] == pytest.approx(round)
    replayed = wrapped()
    assert replay(replayed, tmp_path / "run") == 3
    (participant,) = flower._participants.values()
    assert_same_adapters(replayed, adapters(participant.zo.model))
    for name, value in adapters(central.model).items():
        torch.testing.assert_close(adapters(replayed)[name], value, rtol=2e-2, atol=2e-3)


def test_any_process_answers_for_a_node(nodes: Nodes, tmp_path: Path) -> None:
    """The records are in the context: a process that has just been started applies them first."""
    SeedsAndScalars(tmp_path / "run").start(nodes.grid, num_rounds=2)
    size = 28 + 4 * SETTINGS["queries"]
    for context in nodes.grid.contexts.values():
        assert len(context.state["mobizo"]["records"]) == 2 * size
    flower._participants.clear()
    strategy = SeedsAndScalars(tmp_path / "run", resume=True)
    strategy.start(nodes.grid, num_rounds=1)
    assert nodes.made == 2
    assert [(made.step, made.refused) for made in strategy.rounds] == [(2, {})]
    # A node whose context is lost, or damaged, is sent everything again.
    flower._participants.clear()
    nodes.grid.contexts[100].state = RecordDict()
    nodes.grid.contexts[101].state["mobizo"] = ConfigRecord({"records": bytes(size)})
    strategy = SeedsAndScalars(tmp_path / "run", resume=True)
    strategy.start(nodes.grid, num_rounds=1)
    assert len(strategy.rounds[0].weights) == NODES
    assert len({context.state["mobizo"]["records"] for context in nodes.grid.contexts.values()}) == 1
    assert len(read_journal(tmp_path / "run")[1]) == 4


def test_one_that_was_away_for_a_hundred_rounds(rng: torch.Generator, tmp_path: Path) -> None:
    nodes = Nodes(rng, 2)

    class Leaving(SeedsAndScalars):
        def configure_train(self, server_round: int, *args: Any) -> Any:
            nodes.grid.away = {101} if 2 <= server_round < 102 else set()
            return super().configure_train(server_round, *args)

    strategy = Leaving(tmp_path / "run")
    strategy.start(nodes.grid, num_rounds=102)
    assert [len(made.weights) for made in strategy.rounds] == [2, *[1] * 100, 2]
    assert strategy.rounds[1].refused == {101: "no reply"}
    records = {node: context.state["mobizo"]["records"] for node, context in nodes.grid.contexts.items()}
    assert records[100] == records[101] and len(records[100]) == 102 * (28 + 4 * SETTINGS["queries"])


def test_what_travels_and_what_flower_adds(rng: torch.Generator, tmp_path: Path) -> None:
    nodes = Nodes(rng, 2)
    sent: list[tuple[int, int]] = []

    class Counting(SeedsAndScalars):
        def configure_train(self, *args: Any) -> Any:
            nodes.grid.sent = nodes.grid.received = 0
            return super().configure_train(*args)

        def aggregate_train(self, *args: Any) -> Any:
            sent.append((nodes.grid.sent // 2, nodes.grid.received // 2))
            return super().aggregate_train(*args)

    Counting(tmp_path / "run").start(nodes.grid, num_rounds=3)
    down, up = sent[-1]
    scalars = 4 * SETTINGS["queries"]
    assert 0 < down - (56 + scalars) < 200 and 0 < up - (28 + scalars) < 200
    print(json.dumps({"down": down, "up": up}))


def test_errors_are_named_and_the_round_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    nodes.rows[3]["labels"].fill_(-100)
    nodes.rows[4] = None  # type: ignore[call-overload]
    strategy = SeedsAndScalars(tmp_path / "run", min_answers=6)
    strategy.start(nodes.grid, num_rounds=2)
    for made in strategy.rounds:
        assert sorted(made.weights) == [100, 101, 102, 105, 106, 107] and not made.skipped
        assert "no label" in made.refused[103] and made.refused[104]
    with pytest.raises(ValueError, match=r"initial_arrays must be empty: no arrays travel; got \['w'\]"):
        strategy.start(nodes.grid, ArrayRecord({"w": Array(np.zeros(1))}))


def test_flowers_mods(rng: torch.Generator, tmp_path: Path) -> None:
    """What docs/federated.md says of them, and its mod that hides scalars."""
    page = (EXAMPLE.parents[2] / "docs/federated.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {
        "math": math, "random": random, "dataclasses": dataclasses,
        "Answer": payloads.Answer, "Kind": payloads.Kind, "kind_of": payloads.kind_of,
    }  # fmt: skip
    exec(page[page.index("def private_scalars") : page.index("app = client_app(make, batch, mods")], names)
    for name, mod in (
        ("hidden", names["private_scalars"]),
        ("size", message_size_mod),
        ("clipped", fixedclipping_mod),
        ("noisy", LocalDpMod(1.0, 1.0, 1.0, 1e-5)),
    ):
        nodes = Nodes(rng, 2)
        nodes.grid.app = client_app(nodes.make, nodes.batch, mods=[mod])
        strategy = SeedsAndScalars(tmp_path / name)
        if name in ("hidden", "size"):
            strategy.start(nodes.grid, num_rounds=2)
            assert [made.refused for made in strategy.rounds] == [{}, {}]
            assert sorted(strategy.rounds[1].weights.values()) == ([1, 1] if name == "hidden" else [2, 3])
            assert (strategy.rounds[1].loss == 0) == (name == "hidden")
        else:
            with pytest.raises(ValueError, match="ArrayRecord"):
                strategy.start(nodes.grid, num_rounds=1)


def test_a_message_without_a_payload(nodes: Nodes) -> None:
    context = nodes.grid.contexts[100]
    message = Message(RecordDict({"metrics": MetricRecord({"a": 1})}), 100, "train")
    with pytest.raises(flower.PayloadError, match="expected a ConfigRecord 'mobizo' with 'payload'"):
        flower.reply(message, context, Participant(nodes.make(context)), nodes.batch)


def test_the_example_runs_in_flowers_simulation(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray, on which Flower simulates: make federated")
    model = tiny_texts.save_model(tmp_path / "model")
    rows = tiny_texts.write_csv(tmp_path / "rows.csv", tiny_texts.reviews(12))
    command = [sys.executable, str(EXAMPLE), str(model), str(rows), str(tmp_path / "run"), "5"]
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    header, records = read_journal(tmp_path / "run")
    assert header.queries == 8 and len(records) == 5 and bool(records.applied.all()), ran.stderr
