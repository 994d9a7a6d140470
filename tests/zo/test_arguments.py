"""Estimators and update rules as objects and as the strings and scalars that stand for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import assert_same_bits
from journals import adapters, assert_same_adapters, parse, wrapped

from mobizo_kernels import Centred, OneSided, TwoSided, UpdateRule, ZerothOrder
from mobizo_kernels.zo import make_estimator, make_rule

FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": (
        {"queries": 3, "eps": 0.05, "lr": 0.02, "momentum": 0.5, "weight_decay": 0.25},
        {
            "estimator": TwoSided(queries=3, eps=0.05),
            "optimizer": UpdateRule.sgd(lr=0.02, momentum=0.5, weight_decay=0.25),
        },
    ),
    "adam": (
        {
            "estimator": "one_sided", "queries": 2, "normalize": True,
            "optimizer": "adam", "lr": 0.01, "betas": (0.8, 0.9), "adam_eps": 1e-6,
        },
        {
            "estimator": OneSided(2, normalize=True),
            "optimizer": UpdateRule.adam(0.01, betas=(0.8, 0.9), eps=1e-6),
        },
    ),
    "centred": ({"estimator": "centred", "queries": 3}, {"estimator": Centred(3)}),
    "sign": ({"optimizer": "sign", "weight_decay": 0.5}, {"optimizer": UpdateRule.sign(weight_decay=0.5)}),
    "defaults": ({}, {"estimator": TwoSided(), "optimizer": UpdateRule()}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_an_object_is_its_scalars(form: str, tmp_path: Path) -> None:
    """The same steps, the same journal to the byte, and either goes on with the state of the other."""
    files, states, models = [], [], []
    for number, options in enumerate(FORMS[form]):
        rng, path = torch.Generator().manual_seed(0), tmp_path / str(number)
        zo = ZerothOrder(wrapped(), **options, run_seed=3, journal=path)
        for _ in range(3):
            zo.step(tiny.batch(rng))
        assert zo.journal is not None
        zo.journal.close()
        files.append(path.read_bytes())
        states.append(zo.state_dict())
        models.append(zo.model)
    assert files[0] == files[1]
    assert_same_adapters(models[0], adapters(models[1]))
    assert states[0]["settings"] == states[1]["settings"]
    for options, state in zip(FORMS[form], reversed(states), strict=True):
        ZerothOrder(wrapped(), **options, run_seed=3).load_state_dict(state)


def test_defaults() -> None:
    zo = ZerothOrder(wrapped())
    assert zo.estimator == TwoSided(queries=4, eps=1e-2, normalize=False)
    assert zo.optimizer.rule == UpdateRule.sgd() and zo.optimizer.rule.lr == 1e-3
    assert make_estimator("one_sided", queries=2) == OneSided(2, 1e-2)
    assert make_rule("adam", betas=(0.5, 0.6)) == UpdateRule.adam(betas=(0.5, 0.6))
    assert UpdateRule.adam(betas=[0.5, 0.6]) == make_rule("adam", betas=(0.5, 0.6))  # type: ignore[arg-type]


def test_a_journal_has_the_rate_before_any_schedule(tmp_path: Path, rng: torch.Generator) -> None:
    zo = ZerothOrder(wrapped(), optimizer=UpdateRule.sgd(lr=0.5))
    torch.optim.lr_scheduler.LinearLR(zo.optimizer, 0.25, 1.0, total_iters=4)
    assert zo.optimizer.param_groups[0]["lr"] == 0.125 and zo.optimizer.rule.lr == 0.5
    zo.open_journal(tmp_path / "journal")
    assert parse((tmp_path / "journal").read_bytes())[0]["lr"] == 0.5


def test_the_parameters_move_at_the_rate_of_the_rule(rng: torch.Generator) -> None:
    steps = []
    for lr in (0.5, 1.0):
        model = wrapped()
        zo = ZerothOrder(model, optimizer=UpdateRule.sign(lr=lr))
        zo.step(tiny.batch(torch.Generator().manual_seed(1)))
        steps.append(adapters(model)["model.layers.0.self_attn.q_proj"])
    assert steps[0].any()
    assert_same_bits(2 * steps[0], steps[1])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"estimator": TwoSided(), "queries": 4}, "queries"),
        ({"estimator": OneSided(), "eps": 1e-2}, "eps"),
        ({"estimator": OneSided(), "normalize": False}, "normalize"),
        ({"optimizer": UpdateRule(), "lr": 0.5}, "lr"),
        ({"optimizer": UpdateRule.sgd(), "momentum": 0.0}, "momentum"),
        ({"optimizer": UpdateRule.adam(), "betas": (0.9, 0.9)}, "betas"),
        ({"optimizer": UpdateRule.adam(), "adam_eps": 1e-6}, "adam_eps"),
        ({"optimizer": UpdateRule.sign(), "weight_decay": 0.5}, "weight_decay"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_object_beside_its_scalars_is_refused(options: dict[str, Any], named: str) -> None:
    kind = "estimator" if "estimator" in options else "optimizer"
    whole = type(options[kind]).__name__
    with pytest.raises(
        ValueError, match=f"^{named} must be left out where {kind} is an object, got .* and {whole}"
    ):
        ZerothOrder(wrapped(), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UpdateRule.sgd(lr=-1.0), "lr must be at least 0 and finite in float32, got -1.0"),
        (lambda: UpdateRule.sgd(momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: UpdateRule.adam(eps=0.0), "eps of adam must be positive"),
        (lambda: UpdateRule.sign(float("nan")), "lr must be at least 0 and finite in float32, got nan"),
        (lambda: TwoSided(queries=0), "queries must be at least 1, got 0"),
        (lambda: OneSided(1, normalize=True), "normalize needs at least 2 queries"),
        (lambda: Centred(1), "queries must be at least 2 with the centred estimator, got 1"),
    ],
)
def test_objects_check_their_numbers(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
