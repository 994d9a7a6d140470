"""Steps of ZerothOrder on a model of wrap_parameters: those of the unwrapped model, in one forward."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig
from transformers import GPT2Config, Qwen3Config

from mobizo_kernels import reference
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.lora import wrap
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.optim import base, query_seeds
from mobizo_kernels.parameters import parameter_directions, unwrap_parameters, wrap_parameters
from mobizo_kernels.zo import ZerothOrder, tuned_parameters

OPTIONS: dict[str, Any] = {"queries": 2, "eps": 1e-2, "lr": 1e-3, "run_seed": -3, "distribution": "outer"}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
}
RULES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "decay": {"weight_decay": 0.5},
    "momentum": {"momentum": 0.9},
    "adam": {"optimizer": "adam"},
}
EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def with_biases(model: Any, rng: torch.Generator) -> Any:
    """The model, no vector of it zero or one."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=rng)
    return model


def qwen() -> Any:
    """With norms over the width of a head."""
    return tiny.causal_lm(Qwen3Config(**tiny.SIZES, num_key_value_heads=2, head_dim=8))


def gpt2() -> Any:
    """With Conv1D, LayerNorm, and positions that are looked up for one row."""
    sizes = {name: value for name, value in tiny.SIZES.items() if name != "intermediate_size"}
    return tiny.causal_lm(GPT2Config(**sizes))


OTHERS = {"qwen3": qwen, "gpt2": gpt2}


def values(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in tuned_parameters(model)}


def assert_same(model: Any, expected: dict[str, torch.Tensor]) -> None:
    got = values(model)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert_same_bits(got[name], value)


@pytest.mark.parametrize("estimator", ["two_sided", "one_sided"])
@pytest.mark.parametrize("candidates", [None, [3, 9, 20]], ids=["vocabulary", "candidates"])
@pytest.mark.parametrize("kind", [*MODELS, *OTHERS])
def test_losses_are_those_of_one_forward_for_each_group(
    kind: str, candidates: list[int] | None, estimator: str, rng: torch.Generator
) -> None:
    model = with_biases(OTHERS[kind]() if kind in OTHERS else tiny.llama(**MODELS[kind]), rng)
    batch, twin = tiny.batch(rng), copy.deepcopy(model)
    if candidates is not None:
        batch["labels"] = torch.where(
            batch["labels"] == -100, -100, torch.tensor(candidates)[batch["labels"] % 3]
        )
    options = {**OPTIONS, "estimator": estimator, "candidate_tokens": candidates}
    forwards: list[int] = []
    model.base_model.register_forward_hook(lambda *args: forwards.append(len(args[2].last_hidden_state)))
    zo = ZerothOrder(wrap_parameters(model), **options)
    forwards.clear()
    before = values(model)
    out, expected = zo.step(batch), ZerothOrder(twin, **options).step(batch)
    assert forwards == [3 * zo.estimator.groups]
    torch.testing.assert_close(out.losses, expected.losses, rtol=2e-6, atol=0)
    assert float(out.losses.max() - out.losses.min()) > 1e-2
    # One update, to the bit: nothing was written before it.
    coeffs = (-1e-3 / 2 * out.projected_grads.double()).float()
    seeds = query_seeds(-3, 0, 2)
    for name, value in before.items():
        before[name] = reference.perturb(value, seeds, coeffs, parameter_stream(name), 1.0, "outer")
    assert_same(model, before)


def test_a_part_of_the_parameters(rng: torch.Generator) -> None:
    model, batch = tiny.llama(), tiny.batch(rng)
    model.model.layers[0].requires_grad_(False)
    model.model.embed_tokens.requires_grad_(False)
    frozen, twin = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    out = ZerothOrder(wrap_parameters(model), **OPTIONS).step(batch)
    expected = ZerothOrder(twin, **OPTIONS).step(batch)
    torch.testing.assert_close(out.losses, expected.losses, rtol=2e-6, atol=0)
    for name, value in model.state_dict().items():
        still = "layers.0." in name or "embed_tokens" in name
        assert torch.equal(value, frozen[name]) == still, name


def test_nothing_drifts_in_bfloat16(rng: torch.Generator) -> None:
    model, batch = tiny.llama(dtype=torch.bfloat16), tiny.batch(rng)
    zo, before = ZerothOrder(wrap_parameters(model), **{**OPTIONS, "lr": 0.0}), values(model)
    losses = [zo.step(batch).losses for _ in range(2)]
    assert_same(model, before)
    assert all(float(one.max() - one.min()) > 1e-3 for one in losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@EVERY_RULE
def test_replay_gives_the_same_bits(
    rule: dict[str, Any],
    dtype: torch.dtype,
    tmp_path: Path,
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = with_biases(tiny.llama(dtype=dtype, tie_word_embeddings=True), rng)
    model, path = wrap_parameters(copy.deepcopy(start)), tmp_path / "journal"
    options = {**OPTIONS, **rule, "lr": 0.05}
    zo = ZerothOrder(model, **options, journal=path)
    for _ in range(4):
        zo.step(tiny.batch(rng))
    assert zo.journal is not None
    zo.journal.close()
    assert any(not torch.equal(value, values(start)[name]) for name, value in values(model).items())
    for unwrapped in (True, False):
        monkeypatch.setattr(base, "MOST_SEEDS", 3 if unwrapped else 100)  # of a pass
        again = copy.deepcopy(start) if unwrapped else wrap_parameters(copy.deepcopy(start))
        assert replay(again, path) == 4
        assert_same(again, values(model))
    # Resumed, from the start, and stepped on as the first run is.
    more, twin = tiny.batch(rng), wrap_parameters(copy.deepcopy(start))
    resumed = ZerothOrder(twin, **options, journal=path, resume=True)
    assert resumed.steps == 4
    assert_same(twin, values(model))
    zo.journal = None
    assert_same_bits(resumed.step(more).losses, zo.step(more).losses)
    assert_same(twin, values(model))
    saved = ZerothOrder(unwrapped_copy(model), **{**options, "distribution": "outer"})
    saved.load_state_dict(zo.state_dict())
    assert saved.steps == 5


def unwrapped_copy(model: Any) -> Any:
    return unwrap_parameters(copy.deepcopy(model))


def test_a_journal_of_another_model(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "journal"
    zo = ZerothOrder(wrap_parameters(tiny.llama()), **OPTIONS, journal=path)
    zo.step(tiny.batch(rng))
    assert zo.journal is not None
    zo.journal.close()
    header, _ = read_journal(path)
    assert header.of_parameters and header.lora_a is None
    assert [p.name for p in header.parameters] == [name for name, _ in tuned_parameters(tiny.llama())]
    other = tiny.llama()
    other.model.norm.requires_grad_(False)
    with pytest.raises(ValueError, match="parameters is .*model.norm.weight.* there, but"):
        replay(other, path)
    with pytest.raises(ValueError, match="base_dtype is 'float32' there, but 'bfloat16' here"):
        replay(tiny.llama(dtype=torch.bfloat16), path)
    changed = tiny.llama()
    changed.model.norm.weight.data[0] = 3.0
    with pytest.raises(ValueError, match="base_fingerprint"):
        replay(changed, path)
    with pytest.raises(ValueError, match="parameters is"):
        replay(wrap(tiny.llama(), LoraConfig(r=2, target_modules=["q_proj"])), path)
    with pytest.raises(ValueError, match="journal needs a model wrapped by .* or wrap_parameters"):
        ZerothOrder(tiny.llama(), **OPTIONS, journal=tmp_path / "none")


def test_what_is_refused() -> None:
    model = wrap_parameters(tiny.llama())
    for distribution in ("gaussian", "rademacher"):
        with pytest.raises(ValueError, match="one batched forward has no room for independent noise"):
            ZerothOrder(model, distribution=distribution)
    for option in ("compile", "cuda_graph"):
        with pytest.raises(ValueError, match=f"{option}=True needs"):
            ZerothOrder(model, distribution="outer", **{option: True})
    model.model.norm.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="model.norm.weight was frozen or let go after wrap_parameters"):
        ZerothOrder(model, distribution="outer")


def test_a_parameter_that_no_forward_uses() -> None:
    model = tiny.llama()
    model.model.layers[0].mlp.spare = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="does not call model.layers.0.mlp.spare in a forward"):
        ZerothOrder(wrap_parameters(model), distribution="outer")


def test_an_error_in_the_forward_leaves_no_trace(rng: torch.Generator) -> None:
    model, batch = wrap_parameters(tiny.llama()), tiny.batch(rng)
    zo, before = ZerothOrder(model, **OPTIONS), values(model)

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        zo.step(batch)
    handle.remove()
    assert_same(model, before)
    assert not parameter_directions(model).trying
    twin = ZerothOrder(wrap_parameters(tiny.llama()), **OPTIONS)
    assert_same_bits(zo.step(batch).losses, twin.step(batch).losses)
