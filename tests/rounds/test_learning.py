"""Eight participants with other labels each learn what one machine learns of as many rows."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from federation import Wire, accuracy, labelled_rows
from journals import wrapped

import mobizo_kernels as mobizo
from mobizo_kernels.rounds import Coordinator, bring_up_to_date, run_round

SETTINGS = {"queries": 8, "eps": 1e-2, "lr": 1.0, "candidate_tokens": [3, 4], "distribution": "rademacher"}
ROUNDS, CLIENTS, SAMPLED = 50, 8, 4


def test_eight_with_other_labels_learn_as_one_machine(tmp_path: Path, rng: torch.Generator) -> None:
    wire = Wire([], rng, **SETTINGS)
    names, chosen = range(CLIENTS), random.Random(0)
    wire.participants = {name: wire.made() for name in names}
    central = mobizo.ZerothOrder(wrapped(), **wire.settings)
    test = labelled_rows(rng, 200)
    with Coordinator[int](tmp_path / "run", fewest=2) as coordinator:
        for step in range(ROUNDS):
            # One label each but for two of them, and from 4 to 12 rows.
            wire.rows = {
                name: labelled_rows(rng, 4 + name + name % 2, label=None if name < 2 else name % 2)
                for name in names
            }
            wire.away = {5} if 10 <= step < 30 else set()
            made = run_round(coordinator, chosen.sample(names, SAMPLED), wire)
            central.step(labelled_rows(rng, sum(made.weights.values())))
        assert bring_up_to_date(coordinator, names, wire) == {}
    wire.assert_equal_adapters(names)
    before = accuracy(wrapped(), test)
    federated, alone = (accuracy(zo.model, test) for zo in (wire.participants[5].zo, central))
    assert before < 0.75 and alone > 0.85
    assert federated > alone - 0.08
