"""From a journal back to the run, to the bit, with every optimizer: replayed, resumed, redone, skipped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import DISTRIBUTIONS
from journals import (
    OPTIONS,
    QUERIES,
    RULES,
    adapters,
    assert_same_adapters,
    first_version,
    parse,
    train,
    wrapped,
)
from peft import LoraConfig

from mobizo_kernels import reference
from mobizo_kernels.lora import adapter_layers, wrap
from mobizo_kernels.zo import ZerothOrder, query_seeds, replay

EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@EVERY_RULE
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_replay_gives_the_same_bits(
    distribution: str, rule: dict[str, Any], tmp_path: Path, rng: torch.Generator
) -> None:
    options = {"distribution": distribution, "normalize": True, **rule}
    _, states = train(tmp_path / "journal", rng, steps=5, **options)
    assert all(b.abs().max() > 0 for b in states[-1].values())
    for until in (None, 5, 2, 0):
        model = wrapped()
        steps = 5 if until is None else until
        assert replay(model, tmp_path / "journal", until) == steps
        assert_same_adapters(model, states[steps])
    for until in (-1, 6):
        with pytest.raises(ValueError, match=f"until must be from 0 to 5, .* got {until}"):
            replay(wrapped(), tmp_path / "journal", until)


def test_a_replay_of_the_first_version(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    _, states = train(path, rng, steps=4)
    header, records, _ = parse(path.read_bytes())
    path.write_bytes(first_version(header, [record.coeffs for record in records]))
    model = wrapped()
    assert replay(model, path) == 4
    assert_same_adapters(model, states[4])
    # A step that it skipped is one of zeros, applied like any other: it turns some -0 into 0.
    path.write_bytes(first_version(header, [(0.0,) * QUERIES]))
    negative, expected = wrapped(), {}
    seeds = query_seeds(OPTIONS["run_seed"], 0, QUERIES)
    for name, layer in adapter_layers(negative).items():
        layer.lora_b.data.fill_(-0.0)
        zeros = torch.zeros(QUERIES)
        expected[name] = reference.perturb(layer.lora_b.detach(), seeds, zeros, layer.stream)
    assert replay(negative, path) == 1
    assert_same_adapters(negative, expected)


@EVERY_RULE
@pytest.mark.parametrize("at", [0, 2])
def test_a_skipped_step_leaves_parameters_and_state_alone(
    at: int, rule: dict[str, Any], tmp_path: Path, rng: torch.Generator
) -> None:
    model = wrapped()
    start = {name: b.normal_(generator=rng) for name, b in adapters(model).items()}
    start["model.layers.0.mlp.down_proj"][:7] = -0.0  # to which adding zeros makes a difference
    for name, layer in adapter_layers(model).items():
        layer.lora_b.data.copy_(start[name])
    initial = copy.deepcopy(model)
    zo = ZerothOrder(model, **OPTIONS, **rule, journal=tmp_path / "journal")
    states = [adapters(model)]
    for step in range(4):
        state = copy.deepcopy(zo.optimizer.state_dict()["state"])
        hooks = [model.model.norm.register_forward_hook(lambda *args: args[2] * float("nan"))]
        if step != at:
            hooks.pop().remove()
        assert zo.step(tiny.batch(rng)).skipped == (step == at)
        for hook in hooks:
            hook.remove()
        states.append(adapters(model))
        if step == at:
            assert_same_adapters(model, states[-2])
            torch.testing.assert_close(zo.optimizer.state_dict()["state"], state, rtol=0, atol=0)
    _, records, _ = parse((tmp_path / "journal").read_bytes())
    assert [record.applied for record in records] == [int(step != at) for step in range(4)]
    skipped = records[at]
    assert (skipped.rate, skipped.decay, skipped.coeffs) == (0.0, 1.0, (0.0,) * QUERIES)
    assert skipped.loss != skipped.loss and all(any(records[step].coeffs) for step in {0, 1, 2, 3} - {at})
    for steps in range(5):
        twin = copy.deepcopy(initial)
        assert replay(twin, tmp_path / "journal", steps) == steps
        assert_same_adapters(twin, states[steps])
    resumed = copy.deepcopy(initial)
    again = ZerothOrder(resumed, **OPTIONS, **rule, journal=tmp_path / "journal", resume=True)
    assert (again.steps, again.skipped_steps) == (4, 1)
    batch = tiny.batch(rng)
    again.step(batch), zo.step(batch)
    assert_same_adapters(resumed, adapters(model))


@EVERY_RULE
def test_resuming_gives_the_same_bits(rule: dict[str, Any], tmp_path: Path, rng: torch.Generator) -> None:
    batches = [tiny.batch(rng) for _ in range(6)]
    model = wrapped()
    zo = ZerothOrder(model, **OPTIONS, **rule, journal=tmp_path / "one")
    for step, batch in enumerate(batches):
        zo.optimizer.param_groups[0]["lr"] = 0.02 / (1 + step)
        zo.step(batch)
    for done, batch in enumerate(batches):
        resumed = wrapped()
        zo = ZerothOrder(resumed, **OPTIONS, **rule, journal=tmp_path / "cut", resume=True)
        assert zo.steps == done
        zo.optimizer.param_groups[0]["lr"] = 0.02 / (1 + done)
        zo.step(batch)
    assert_same_adapters(resumed, adapters(model))
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "one").read_bytes()


@EVERY_RULE
def test_steps_are_redone_one_by_one_or_at_once(
    rule: dict[str, Any], tmp_path: Path, rng: torch.Generator
) -> None:
    _, states = train(tmp_path / "journal", rng, **rule)
    model = wrapped()
    zo = ZerothOrder(model, **OPTIONS, **rule)
    recorded = zo.open_journal(tmp_path / "journal", resume=True)
    with pytest.raises(ValueError, match="expected a record of step 4, got step 0"):
        zo.step(tiny.batch(rng))
    assert_same_adapters(model, states[0])
    zo.redo(recorded[:1])
    assert_same_adapters(model, states[1])
    zo.redo(recorded[1:])
    assert_same_adapters(model, states[4])
    assert zo.step(tiny.batch(rng)).step == 4


def test_another_model_is_refused(tmp_path: Path, rng: torch.Generator) -> None:
    train(tmp_path / "journal", rng, steps=1)
    fewer = wrapped(layers_to_transform=[0])
    wider = wrap(tiny.llama(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    other = wrapped()
    other.model.norm.weight.data[3] += 1
    for model, message in (
        (fewer, r"'model.layers.1.self_attn.q_proj.weight'.* where the model has None"),
        (wider, r"shape=\(32, 3\).* where the model has .*shape=\(32, 4\)"),
        (other, "its base_fingerprint is"),
    ):
        with pytest.raises(ValueError, match=f"of another model: .*{message}"):
            replay(model, tmp_path / "journal")
        assert all(not b.any() for b in adapters(model).values())
        with pytest.raises(ValueError, match="(parameters|base_fingerprint) is .* in this run"):
            ZerothOrder(model, **OPTIONS, journal=tmp_path / "journal", resume=True)
    with pytest.raises(ValueError, match="is not wrapped"):
        replay(tiny.llama(), tmp_path / "journal")
    with pytest.raises(FileNotFoundError, match="absent"):
        replay(wrapped(), tmp_path / "absent")
