"""What a zeroth-order run refuses or warns of before its first step."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig

from mobizo_kernels.lora import wrap
from mobizo_kernels.optim import Records
from mobizo_kernels.zo import ZerothOrder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"queries": 2.0}, "queries must be an integer, got 2.0"),
        ({"eps": -1.0}, "eps must be positive and finite in float32, got -1.0"),
        ({"eps": 1e-50}, "eps must be positive and finite in float32, got 1e-50"),
        ({"eps": 1e39}, r"eps must be positive and finite in float32, got 1e\+39"),
        ({"eps": float("nan")}, "eps must be positive and finite in float32, got nan"),
        ({"lr": -0.1}, "lr must be at least 0 and finite in float32, got -0.1"),
        ({"lr": float("inf")}, "lr must be at least 0 and finite in float32, got inf"),
        ({"lr": 1e39}, "lr must be at least 0 and finite in float32"),
        ({"lr": float("nan")}, "lr must be at least 0 and finite in float32, got nan"),
        ({"run_seed": 0.5}, "run_seed must be an integer, got 0.5"),
        ({"run_seed": 2**64}, "run_seed must fit 64 bits"),
        ({"estimator": "spsa"}, "estimator must be one of two_sided, one_sided, centred, got 'spsa'"),
        (
            {"distribution": "uniform"},
            "distribution must be one of gaussian, rademacher, outer, got 'uniform'",
        ),
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\), got 1.5"),
        ({"momentum": 0.5, "optimizer": "sign"}, "momentum must be 0 with optimizer 'sign', got 0.5"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adam, sign, got 'lion'"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"adam_eps": 0.0}, "eps of adam must be positive and finite in float32, got 0.0"),
        ({"adam_eps": 1e-50}, "eps of adam must be positive and finite in float32, got 1e-50"),
        ({"adam_eps": 1e39}, "eps of adam must be positive and finite in float32"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and at least 0, got -1.0"),
        ({"candidate_tokens": [1]}, "candidate_tokens must be at least 2"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    model = wrap(tiny.llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=message):
        ZerothOrder(model, **options)


def assigned(model: torch.nn.Module) -> None:
    copies = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(copies, assign=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: model.to("meta"),
            "another tensor than when ZerothOrder was made, on device meta",
        ),
        (assigned, "another tensor than when ZerothOrder was made, on device cpu"),
    ],
)
def test_parameters_that_are_no_longer_those_of_the_model(
    change: Callable[[torch.nn.Module], object], message: str, rng: torch.Generator
) -> None:
    """Steps would go on and change nothing."""
    model = wrap(tiny.llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    zo, batch = ZerothOrder(model, queries=2), tiny.batch(rng, (6,))
    zo.step(batch)
    records = Records.none(2)
    change(model)
    for act in (lambda: zo.step(batch), lambda: zo.losses(batch), lambda: zo.apply(records)):
        with pytest.raises(ValueError, match=f"q_proj.* {message}"):
            act()
    assert zo.steps == 1


def test_weights_that_are_no_longer_those_of_the_model(rng: torch.Generator) -> None:
    """Of a model that is tuned in all its parameters; tied ones have two holders."""
    model = tiny.llama()
    zo, batch = ZerothOrder(model, queries=1, eps=1e-3), tiny.batch(rng, (6,))
    zo.step(batch)
    model.to("cpu", torch.float64)  # the same tensors
    model.float()
    zo.step(batch)
    assigned(model)
    with pytest.raises(ValueError, match="weight is another tensor than when ZerothOrder was made"):
        zo.step(batch)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e39])
def test_an_alpha_that_is_not_finite(alpha: float) -> None:
    model = tiny.llama()
    with pytest.raises(ValueError, match="LoraConfig.*alpha.* must be .*finite"):
        wrap(model, LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"]))  # type: ignore[arg-type]


def test_weights_that_are_not_finite() -> None:
    model = tiny.llama()
    model.model.layers[0].mlp.up_proj.weight.data[3, 4] = float("nan")
    wrap(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="LlamaForCausalLM.*finite"):
        ZerothOrder(model)


def test_an_integer_of_numpy_is_one() -> None:
    model = wrap(tiny.llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    zo = ZerothOrder(model, queries=np.int64(2), run_seed=np.uint64(2**63))  # type: ignore[arg-type]
    assert json.dumps(zo.state_dict()["settings"])


def test_nothing_to_tune() -> None:
    with pytest.raises(
        ValueError, match="nothing to tune: no parameter of LlamaForCausalLM requires a gradient"
    ):
        ZerothOrder(tiny.llama().requires_grad_(False))


@pytest.mark.parametrize(
    ("dtype", "eps", "warned"),
    [
        (torch.float32, 1e-2, False),
        (torch.float32, 1e-4, False),
        (torch.float32, 1e-1, True),
        (torch.bfloat16, 1e-2, False),
        (torch.bfloat16, 1e-3, True),
    ],
)
def test_a_size_of_perturbation_that_tells_little(dtype: torch.dtype, eps: float, warned: bool) -> None:
    model = wrap(tiny.llama().to(dtype), LoraConfig(r=2, target_modules=["q_proj"]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ZerothOrder(model, eps=eps)
    assert any(f"eps={eps:g} is outside of" in str(warning.message) for warning in caught) == warned
