"""What a run saves of itself, and whose state it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from journals import adapters, assert_same_adapters, wrapped
from peft import LoraConfig

from mobizo_kernels.lora import wrap
from mobizo_kernels.zo import ZerothOrder


@pytest.mark.parametrize("rule", [{"momentum": 0.5}, {"optimizer": "adam"}], ids=["momentum", "adam"])
def test_resuming_gives_the_same_model(rule: dict[str, Any], rng: torch.Generator) -> None:
    model, batches = wrapped(), [tiny.batch(rng) for _ in range(6)]
    options: dict[str, Any] = {"queries": 2, "run_seed": 9, "normalize": True, **rule}
    zo = ZerothOrder(model, **options)
    for batch in batches[:3]:
        zo.step(batch)
    resumed_model, state = copy.deepcopy(model), copy.deepcopy(zo.state_dict())
    state["steadiness"] = {"steps": 3, "mean": 2.0}  # as an earlier version has it
    for batch in batches[3:]:
        zo.step(batch)
    resumed = ZerothOrder(resumed_model, **options)
    resumed.load_state_dict(state)
    for batch in batches[3:]:
        resumed.step(batch)
    assert resumed.steps == 6
    assert_same_adapters(resumed_model, adapters(model))


def test_another_runs_state_is_refused() -> None:
    model = wrapped()
    state = ZerothOrder(model, queries=2).state_dict()
    zo = ZerothOrder(model, queries=3, lr=0.5)
    with pytest.raises(ValueError, match="queries is 3 here, but the state was saved with 2"):
        zo.load_state_dict(state)
    assert zo.optimizer.param_groups[0]["lr"] == 0.5 and zo.steps == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "lora_a"),
        ({"lora_alpha": 7}, "scalings"),
        ({"alora_invocation_tokens": [5]}, "invocation_tokens"),
        ({"candidate_tokens": [3, 4]}, "candidate_tokens"),
    ],
)
def test_the_state_of_another_adapter_is_refused(
    change: dict[str, Any], named: str, rng: torch.Generator
) -> None:
    def run(seed: int = 0, candidate_tokens: list[int] | None = None, **options: Any) -> ZerothOrder:
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
        return ZerothOrder(wrap(tiny.llama(), config, seed=seed), candidate_tokens=candidate_tokens)

    zo = run()
    zo.step(tiny.batch(rng))
    state, other = zo.state_dict(), run(**change)
    with pytest.raises(ValueError, match=f"^{named} is .* here, but the state was saved with "):
        other.load_state_dict(state)
    assert other.steps == 0
    del state["settings"][named]  # as in an earlier version
    other.load_state_dict(state)
    assert other.steps == 1
