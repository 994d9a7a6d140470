"""Rounds in which a transport, a server's schedule or a participant does what it should not."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from federation import Wire
from journals import wrapped

import mobizo_kernels as mobizo
from mobizo_kernels.journal import JournalHeader
from mobizo_kernels.rounds import Coordinator, Participant, bring_up_to_date, run_round
from mobizo_kernels.rounds.payloads import Refusal, Request, State, first_head


def replace_header(header: JournalHeader, **changes: Any) -> JournalHeader:
    """Beyond what is checked: `lr` is no argument."""
    changed = copy.copy(header)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def test_replies_that_come_late_or_twice(tmp_path: Path, rng: torch.Generator) -> None:
    wire, before = Wire([1, 2], rng), []
    with Coordinator[int](tmp_path / "run") as coordinator:

        def careless(payloads: Any) -> Any:
            now = list(wire(payloads))
            yield from (reply for name, reply in enumerate(before) if name == 0)
            for reply in now:
                yield from (reply, *before, reply)
            before[:] = now

        for _ in range(3):
            made = run_round(coordinator, [0, 1], careless)
            assert made.weights == {0: 2, 1: 4} and made.refused == {}
        bring_up_to_date(coordinator, [0, 1], wire)
    wire.assert_equal_adapters([0, 1])


def test_a_run_that_has_not_begun_has_no_head(tmp_path: Path) -> None:
    with Coordinator[int](tmp_path / "run") as coordinator:
        with pytest.raises(ValueError, match="begins when the first participant has joined"):
            _ = coordinator.head
        assert coordinator.steps == 0


@pytest.mark.parametrize("lr", [math.nan, math.inf, -0.1, 1e39, "0.1"])
def test_a_rate_out_of_range_records_nothing(lr: Any, tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([1], rng)
    with Coordinator[int](tmp_path / "run", lr=lambda step: lr) as coordinator:
        with pytest.raises(ValueError, match="lr must be"):
            run_round(coordinator, [0], wire)
        assert coordinator.steps == 0


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("estimator", "foo", "estimator must be one of"),
        ("eps", 0.0, "eps must be positive"),
    ],
)
def test_the_first_that_joins_makes_no_run_that_cannot_be(
    field: str, value: Any, sentence: str, tmp_path: Path, rng: torch.Generator
) -> None:
    wire = Wire([1], rng)
    header = replace_header(wire.participants[0].zo.journal_header(), **{field: value}).to_bytes()
    with Coordinator[int](tmp_path / "run") as coordinator:
        coordinator.ask(1)
        coordinator.hear(1, State(0, first_head(header), header).encode())
        assert sentence in coordinator.failures()[1]
        assert coordinator.header is None and not (tmp_path / "run").exists()
        assert run_round(coordinator, [0], wire).weights == {0: 2}


def test_a_step_of_its_own_is_refused(tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([1, 1], rng)
    with Coordinator[int](tmp_path / "run") as coordinator:
        run_round(coordinator, [0, 1], wire)
        wire.participants[1].zo.step(wire.rows[1])
        made = run_round(coordinator, [0, 1], wire)
        assert made.weights == {0: 2}
        assert made.refused == {1: "zo was to make no step of its own, but is at step 1, not 0"}
        assert list(bring_up_to_date(coordinator, [0, 1], wire)) == [1]


def test_what_is_no_text_is_still_a_reason(rng: torch.Generator) -> None:
    participant = Wire([1], rng).participants[0]

    def unreadable(step: int) -> Any:
        raise ValueError("no file \udcff")

    request = Request(0, participant.state().head, 0, 3, b"").encode()
    assert Refusal.decode(participant.respond(request, unreadable)).reason == "no file ?"


def test_a_participant_needs_a_run_that_can_be_recorded() -> None:
    with pytest.raises(ValueError, match="journal needs a model wrapped by mobizo_kernels.wrap"):
        Participant(mobizo.ZerothOrder(tiny.llama(), queries=3, eps=1e-3))
    zo = mobizo.ZerothOrder(wrapped(), queries=3)
    group = zo.optimizer.param_groups[0]
    half = {**group, "params": group["params"][1:], "param_names": group["param_names"][1:], "lr": 1.0}
    group["params"], group["param_names"] = group["params"][:1], group["param_names"][:1]
    zo.optimizer.param_groups.append(half)
    with pytest.raises(ValueError, match="journal needs one group of parameters, got 2"):
        Participant(zo)
