"""Rounds: against one machine with all rows, dropping out and coming back, and what is refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from federation import Wire
from helpers import assert_same_bits
from journals import RULES, adapters, assert_same_adapters, wrapped

import mobizo_kernels as mobizo
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.rounds import Coordinator, Participant, PayloadError, bring_up_to_date, run_round
from mobizo_kernels.rounds.payloads import Answer, Request, State

ESTIMATORS = [("two_sided", False), ("two_sided", True), ("one_sided", False), ("one_sided", True),
              ("centred", False), ("centred", True)]  # fmt: skip


def joined(wires: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([rows[name] for rows in wires]) for name in wires[0]}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_one_participant_makes_the_steps_of_a_machine_of_its_own(
    rule: dict[str, Any], tmp_path: Path, rng: torch.Generator
) -> None:
    wire = Wire([3], rng, **rule)
    alone = mobizo.ZerothOrder(wrapped(), **wire.settings, journal=tmp_path / "alone")
    with Coordinator[int](tmp_path / "run") as coordinator:
        for _ in range(4):
            made, step = run_round(coordinator, [0], wire), alone.step(wire.rows[0])
            assert made.loss == pytest.approx(step.loss) and made.weights == {0: 6} and not made.refused
        assert bring_up_to_date(coordinator, [0], wire) == {}
    assert_same_adapters(wire.participants[0].zo.model, adapters(alone.model))
    assert (tmp_path / "run").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.parametrize("estimator, normalize", ESTIMATORS)
def test_unequal_rows_make_the_estimate_of_all_in_one_batch(
    estimator: str, normalize: bool, tmp_path: Path, rng: torch.Generator
) -> None:
    wire = Wire([1, 4, 2], rng, estimator=estimator, normalize=normalize)
    central = mobizo.ZerothOrder(wrapped(), **wire.settings)
    with Coordinator[int](tmp_path / "run") as coordinator:
        for _ in range(3):
            made, step = (
                run_round(coordinator, [0, 1, 2], wire),
                central.step(joined(list(wire.rows.values()))),
            )
            assert made.weights == {0: 2, 1: 8, 2: 4}
            assert made.loss == pytest.approx(step.loss, rel=1e-5)
        bring_up_to_date(coordinator, [0, 1, 2], wire)
    wire.assert_equal_adapters([0, 1, 2])
    for name, value in adapters(central.model).items():
        torch.testing.assert_close(adapters(wire.participants[0].zo.model)[name], value, rtol=2e-2, atol=2e-3)
    replayed = wrapped()
    replay(replayed, tmp_path / "run")
    assert_same_adapters(replayed, adapters(wire.participants[2].zo.model))


def test_what_travels(tmp_path: Path, rng: torch.Generator) -> None:
    wire, queries = Wire([2, 2], rng), 3
    with Coordinator[int](tmp_path / "run") as coordinator:
        run_round(coordinator, [0, 1], wire)
        for _ in range(2):
            wire.sent = wire.received = wire.calls = 0
            run_round(coordinator, [0, 1], wire)
            assert wire.calls == 1
            assert wire.received == 2 * (28 + 4 * queries)
            assert wire.sent == 2 * (28 + 28 + 4 * queries)


def test_one_that_was_away_catches_up_in_one_message(tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([1, 2, 1], rng, optimizer="adam", lr=0.01)
    with Coordinator[int](tmp_path / "run", fewest=2) as coordinator:
        run_round(coordinator, [0, 1, 2], wire)
        wire.away.add(1)
        for _ in range(100):
            made = run_round(coordinator, [0, 1, 2], wire)
            assert made.refused == {1: "no reply"} and list(made.weights) == [2, 0]
        wire.away.clear()
        wire.calls = wire.sent = 0
        made = run_round(coordinator, [1, 2], wire)
        assert sorted(made.weights) == [1, 2] and wire.calls == 1
        assert wire.sent == 2 * 28 + (101 + 1) * (28 + 4 * 3)  # it never said that it got the first record
        # One that has forgotten everything says how much it has, and is sent the rest.
        wire.participants[0] = wire.made()
        assert 0 in run_round(coordinator, [0, 2], wire).weights
        assert bring_up_to_date(coordinator, [0, 1, 2], wire) == {}
        assert coordinator.steps == 103
    wire.assert_equal_adapters([0, 1, 2])


def test_a_participant_with_a_journal_goes_on_from_it(tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([1, 1], rng)
    wire.participants[1] = wire.made(journal=tmp_path / "own")
    with Coordinator[int](tmp_path / "run") as coordinator:
        for _ in range(3):
            run_round(coordinator, [0, 1], wire)
        wire.participants[1].zo.journal.close()
        wire.participants[1] = wire.made(journal=tmp_path / "own", resume=True)
        assert wire.participants[1].steps == 2
        wire.sent = 0
        assert run_round(coordinator, [1], wire).weights == {1: 2}
        assert wire.sent == 28 + 28 + 4 * 3
    bring_up_to_date(coordinator, [0, 1], wire)
    wire.assert_equal_adapters([0, 1])
    assert (tmp_path / "own").read_bytes() == (tmp_path / "run").read_bytes()
    wire.participants[1].zo.journal.close()


def test_a_coordinator_goes_on_from_its_journal(tmp_path: Path, rng: torch.Generator) -> None:
    wire, whole = Wire([1, 2], rng, optimizer="adam", lr=0.01), Wire([1, 2], rng, optimizer="adam", lr=0.01)
    whole.rows = wire.rows
    with Coordinator[int](tmp_path / "whole") as coordinator:
        for _ in range(4):
            run_round(coordinator, [0, 1], whole)
    for rounds in (1, 3):
        with Coordinator[int](tmp_path / "run", resume=True) as coordinator:
            for _ in range(rounds):
                run_round(coordinator, [0, 1], wire)
    assert (tmp_path / "run").read_bytes() == (tmp_path / "whole").read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        Coordinator[int](tmp_path / "run")


def test_a_schedule_is_the_coordinators(tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([1], rng)
    with Coordinator[int](tmp_path / "run", lr=lambda step: 0.5 / (step + 1)) as coordinator:
        for _ in range(3):
            run_round(coordinator, [0], wire)
    assert read_journal(tmp_path / "run")[1].rates.tolist() == pytest.approx([0.5, 0.25, 0.5 / 3])


def answer(**changes: Any) -> Any:
    return lambda reply: replace(Answer.decode(reply), **changes).encode()


@pytest.mark.parametrize(
    "fault, sentence",
    [
        (answer(numbers=(1.0, math.nan, 1.0)), "its loss or one of its scalars is not finite"),
        (answer(loss=math.inf), "its loss or one of its scalars is not finite"),
        (answer(step=0), "expected the reply to round 1, got one to round 0"),
        (answer(numbers=(1.0, 2.0)), "expected 3 projected gradients, got 2"),
        (answer(weight=0), "expected a weight of 1 at least, got 0"),
        (answer(head=bytes(8)), "head is 0000000000000000 there, but .* here: other records"),
        (lambda reply: reply[:-1], "it is damaged: its checksum is another one"),
        (lambda reply: b"hello", "it is no payload"),
        (lambda reply: State(1, bytes(8)).encode(), "expected ANSWER, got STATE"),
        (lambda reply: ConnectionError("gone"), "ConnectionError: gone"),
    ],
)
def test_a_bad_answer_is_refused_by_name_and_the_round_goes_on(
    fault: Any, sentence: str, tmp_path: Path, rng: torch.Generator
) -> None:
    wire, without = Wire([1, 2, 1], rng), Wire([1, 2, 1], rng)
    without.rows = wire.rows
    with (
        Coordinator[int](tmp_path / "run", fewest=2) as coordinator,
        Coordinator[int](tmp_path / "without", fewest=2) as other,
    ):
        for each, sender in ((coordinator, wire), (other, without)):
            run_round(each, [0, 1, 2], sender)
        wire.faults[1] = fault
        made, expected = run_round(coordinator, [0, 1, 2], wire), run_round(other, [0, 2], without)
        assert list(made.refused) == [1] and made.weights == expected.weights and not made.skipped
        with pytest.raises(AssertionError, match=sentence):
            raise AssertionError(made.refused[1])
        skipped = run_round(coordinator, [0, 1], wire)
        assert skipped.skipped and math.isnan(skipped.loss) and list(skipped.refused) == [1]
        wire.faults.clear()
        assert sorted(run_round(coordinator, [0, 1, 2], wire).weights) == [0, 1, 2]
        assert bring_up_to_date(coordinator, [0, 1, 2], wire) == {}
    size = 28 + 4 * 3
    start = len(read_bytes := (tmp_path / "run").read_bytes()) - 4 * size
    assert (tmp_path / "without").read_bytes() == read_bytes[: start + 2 * size]
    wire.assert_equal_adapters([0, 1, 2])


def test_rows_without_labels_are_refused_by_the_participant(tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([1, 1], rng)
    wire.rows[1]["labels"].fill_(-100)
    with Coordinator[int](tmp_path / "run") as coordinator:
        for _ in range(2):
            made = run_round(coordinator, [0, 1], wire)
            assert made.weights == {0: 2} and "no label" in made.refused[1]


def test_another_run_is_refused_by_what_differs(tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([1, 1, 1, 1], rng)
    wire.participants[1] = Participant(mobizo.ZerothOrder(wrapped(), **{**wire.settings, "eps": 0.02}))
    wire.participants[2] = Participant(mobizo.ZerothOrder(wrapped(seed=1), **wire.settings))
    with Coordinator[int](tmp_path / "run") as coordinator:
        run_round(coordinator, [0], wire)
        made = run_round(coordinator, [0, 1, 2], wire)
        assert made.weights == {0: 2}
        assert made.refused[1] == "eps is 0.02 there, but 0.01 in this run"
        assert made.refused[2].startswith("lora_a is")
        # One that took part and was then replaced by another: first its head tells, then the field.
        wire.participants[0] = wire.participants[1]
        assert "head is" in run_round(coordinator, [0, 3], wire).refused[0]
        assert run_round(coordinator, [0, 3], wire).refused[0] == "eps is 0.02 there, but 0.01 in this run"
    with Coordinator[int](tmp_path / "other") as coordinator:
        with pytest.raises(ValueError, match="a participant that has joined, got .* 3 steps were made there"):
            run_round(coordinator, [3], wire)
        assert not (tmp_path / "other").exists()


def test_a_header_that_is_known_before(tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([1, 1], rng)
    header = mobizo.ZerothOrder(wrapped(), **{**wire.settings, "lr": 0.5}).journal_header()
    with Coordinator[int](tmp_path / "run", header=header) as coordinator:
        made = run_round(coordinator, [0, 1], wire)
        assert made.skipped and made.refused == {n: "lr is 0.05 there, but 0.5 in this run" for n in (0, 1)}


def test_what_a_participant_refuses(rng: torch.Generator) -> None:
    wire = Wire([1], rng)
    participant = wire.participants[0]
    here = participant.state().head
    before = adapters(participant.zo.model)
    for request, sentence in (
        (Request(0, here, 0, 2, b""), "expected records of 3 coefficients, got 2"),
        (Request(4, here, 4, 3, b""), "expected records from step 0 on, got those from 4"),
        (Request(0, bytes(8), 0, 3, b""), "head is 0000000000000000 there, but .* here"),
        (Request(1, here, 0, 3, bytes(40)), "head is .* there, but .* here"),
    ):
        with pytest.raises(PayloadError, match=sentence):
            participant.follow(request)
    assert participant.steps == 0
    assert_same_adapters(participant.zo.model, before)
    participant.zo.step(wire.rows[0])
    with pytest.raises(ValueError, match="zo must be before its first step or have a journal, got step 1"):
        Participant(participant.zo)
    with pytest.raises(ValueError, match="fewest must be at least 1, got 0"):
        Coordinator[int]("run", fewest=0)


def test_a_step_that_has_passed(tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([1, 1], rng)
    payloads: list[bytes] = []
    with Coordinator[int](tmp_path / "run") as coordinator:
        run_round(coordinator, [0, 1], wire)
        payloads.append(coordinator.ask(0))
        for _ in range(2):
            run_round(coordinator, [0, 1], wire)
    with pytest.raises(PayloadError, match="step 1 has passed: 2 steps were made here"):
        wire.participants[0].follow(Request.decode(payloads[0]))
    before = adapters(wire.participants[0].zo.model)
    forged = replace(Request.decode(payloads[0]), first=0, step=2, records=bytes(80))
    with pytest.raises(PayloadError, match="another record of step 0 was applied here"):
        wire.participants[0].follow(forged)
    assert_same_bits(*(next(iter(a.values())) for a in (before, adapters(wire.participants[0].zo.model))))


def test_rows_are_asked_for_by_step(tmp_path: Path, rng: torch.Generator) -> None:
    participant, steps = Wire([1], rng).participants[0], []

    def rows(step: int) -> dict[str, torch.Tensor]:
        steps.append(step)
        return tiny.batch(rng)

    with Coordinator[str](tmp_path / "run") as coordinator:
        for _ in range(3):
            run_round(coordinator, ["me"], lambda payloads: [
                (name, participant.respond(payload, rows)) for name, payload in payloads.items()
            ])  # fmt: skip
    assert steps == [0, 1, 2]
