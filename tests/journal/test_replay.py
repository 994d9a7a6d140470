"""From a journal back to the run, to the bit, with every optimizer: replayed, resumed, applied, skipped."""

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
    second_version,
    train,
    wrapped,
)
from peft import LoraConfig

from mobizo_kernels import reference
from mobizo_kernels.journal import replay
from mobizo_kernels.lora import adapter_layers, wrap
from mobizo_kernels.optim import query_seeds
from mobizo_kernels.zo import ZerothOrder

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


def test_a_replay_of_earlier_versions(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    _, states = train(path, rng, steps=4)
    header, records, _ = parse(path.read_bytes())
    path.write_bytes(second_version(path.read_bytes()))
    for model in (wrapped(), wrapped(lora_alpha=60)):  # of which it knows nothing
        assert replay(model, path) == 4
        assert_same_adapters(model, states[4])
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
    assert zo.journal is not None
    zo.journal.close()
    zo.journal = None
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
        assert zo.journal is not None
        zo.journal.close()
    assert_same_adapters(resumed, adapters(model))
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "one").read_bytes()


@EVERY_RULE
def test_steps_are_applied_one_by_one_or_at_once(
    rule: dict[str, Any], tmp_path: Path, rng: torch.Generator
) -> None:
    _, states = train(tmp_path / "journal", rng, **rule)
    model = wrapped()
    zo = ZerothOrder(model, **OPTIONS, **rule)
    recorded = zo.open_journal(tmp_path / "journal", resume=True)
    with pytest.raises(ValueError, match="expected a record of step 4, got step 0"):
        zo.step(tiny.batch(rng))
    assert_same_adapters(model, states[0])
    zo.apply(recorded[:1])
    assert_same_adapters(model, states[1])
    zo.apply(recorded[1:])
    assert_same_adapters(model, states[4])
    assert zo.step(tiny.batch(rng)).step == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers_to_transform": [0]},
            r"parameters is .*'model.layers.1.self_attn.q_proj.weight'.*, but None",
        ),
        ({"r": 4}, r"parameters is .*shape=\(32, 3\).* there, but .*shape=\(32, 4\)"),
        ({"lora_alpha": 60}, "scaling of model.layers.0.self_attn.q_proj.weight is 2.0 there, but 20.0"),
        ({"use_rslora": True}, "scaling of model.layers.0.self_attn.q_proj.weight is 2.0 there, but 3.46"),
        (
            {"alpha_pattern": {"1.mlp.down_proj": 3}},
            "scaling of model.layers.1.mlp.down_proj.* there, but 1.0",
        ),
        ({"alora_invocation_tokens": [7, 8]}, r"invocation_tokens is \[\] there, but \[7, 8\]"),
        ({"seed": 1}, "lora_a is '[0-9a-f]{32}' there, but '[0-9a-f]{32}'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_adapter_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path, rng: torch.Generator
) -> None:
    train(tmp_path / "journal", rng, steps=1)
    content, model = (tmp_path / "journal").read_bytes(), wrapped(**options)
    with pytest.raises(ValueError, match=f"journal .* of another .*: {message}"):
        replay(model, tmp_path / "journal")
    with pytest.raises(ValueError, match=f"journal .*: {message}.* in this run"):
        ZerothOrder(model, **OPTIONS, journal=tmp_path / "journal", resume=True)
    assert_same_adapters(model, adapters(wrapped(**options)))
    assert (tmp_path / "journal").read_bytes() == content


def test_another_beginning_is_refused(tmp_path: Path, rng: torch.Generator) -> None:
    """A run goes on from the LoRA-B with which it began, and so does a replay."""
    path, model = tmp_path / "journal", wrapped()
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    start = copy.deepcopy(model)
    zo = ZerothOrder(model, **OPTIONS, journal=path)
    zo.step(tiny.batch(rng))
    assert zo.journal is not None
    zo.journal.close()
    for other in (wrapped(), model):
        before = adapters(other)
        with pytest.raises(
            ValueError, match="begins with another LoRA-B, .*: lora_b is '.*' there, but '.*' here"
        ):
            replay(other, path)
        with pytest.raises(ValueError, match="lora_b is .* in this run"):
            ZerothOrder(other, **OPTIONS, journal=path, resume=True)
        assert_same_adapters(other, before)
    assert replay(start, path) == 1
    assert_same_adapters(start, adapters(model))


def test_another_model_is_refused(tmp_path: Path, rng: torch.Generator) -> None:
    train(tmp_path / "journal", rng, steps=1)
    other = wrapped()
    other.model.norm.weight.data[3] += 1
    with pytest.raises(ValueError, match="of another model: base_fingerprint is"):
        replay(other, tmp_path / "journal")
    assert all(not b.any() for b in adapters(other).values())
    with pytest.raises(ValueError, match="base_fingerprint is .* in this run"):
        ZerothOrder(other, **OPTIONS, journal=tmp_path / "journal", resume=True)
    narrow = tiny.llama(dtype=torch.bfloat16)
    narrow = wrap(narrow, LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"]))
    wide = copy.deepcopy(narrow).float()
    zo = ZerothOrder(narrow, **OPTIONS, journal=tmp_path / "narrow")
    zo.step(tiny.batch(rng))
    assert replay(wide, tmp_path / "narrow") == 1  # the type decides on losses only
    assert_same_adapters(wide, adapters(narrow))
    assert zo.journal is not None
    zo.journal.close()
    with pytest.raises(ValueError, match="base_dtype is 'bfloat16' there, but 'float32' in this run"):
        ZerothOrder(wide, **OPTIONS, journal=tmp_path / "narrow", resume=True)
    with pytest.raises(ValueError, match="is not wrapped"):
        replay(tiny.llama(), tmp_path / "journal")
    with pytest.raises(FileNotFoundError, match="absent"):
        replay(wrapped(), tmp_path / "absent")
