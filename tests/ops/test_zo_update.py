"""zo_update and its .out form: the bits of perturb_, and the norm of the change of what is stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import (
    assert_norm,
    assert_same_bits,
    directions,
    every_kind_of_update,
    gaps_untouched,
    name_of,
    on_device,
    poisoned,
    strided,
)

from mobizo_kernels import ops, reference


@every_kind_of_update
def test_update(
    form: str,
    dtype: torch.dtype,
    distribution: str,
    shape: tuple[int, ...],
    decay: float,
    rng: torch.Generator,
) -> None:
    param = torch.randn(shape, generator=rng).to(dtype)
    seeds, coeffs = directions(5, rng)
    expected, expected_norm = reference.zo_update(param, seeds, coeffs, 17, decay, distribution)
    args = (param, seeds, coeffs, 17, decay, distribution)
    if form == "functional":
        norm = ops.zo_update(*args)
    else:
        norm = poisoned(1)
        assert torch.ops.mobizo.zo_update.out(*args, out=norm) is norm
    assert_same_bits(param, expected)
    assert_norm(norm, expected_norm)


def test_norm_is_of_stored_values(rng: torch.Generator) -> None:
    """Steps far below the spacing of bfloat16 change nothing, and the norm says so."""
    param = torch.ones(64, dtype=torch.bfloat16)
    seeds, coeffs = directions(1, rng, scale=1e-6)
    assert ops.zo_update(param, seeds, coeffs, 1).item() == 0
    assert bool((param == 1).all())


def test_no_seeds(rng: torch.Generator) -> None:
    param = torch.randn(9, generator=rng)
    before = param.clone()
    assert ops.zo_update(param, *directions(0, rng), 1).item() == 0
    assert torch.equal(param, before)


def test_non_contiguous_parameter(rng: torch.Generator) -> None:
    values = torch.randn(13, 9, generator=rng)
    seeds, coeffs = directions(3, rng)
    expected, expected_norm = reference.zo_update(values, seeds, coeffs, 2)
    param = strided(values)
    assert_norm(ops.zo_update(param, seeds, coeffs, 2), expected_norm)
    assert_same_bits(param.contiguous(), expected)
    assert gaps_untouched(param)


def test_a_parameter_of_nan_shows_in_the_norm() -> None:
    assert ops.zo_update(poisoned(3), torch.tensor([1]), torch.ones(1), 0).isnan().all()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"param": torch.ones(3, dtype=torch.int64)}, "param .*int64"),
        ({"seeds": torch.ones(2)}, "seeds .*int64"),
        ({"coeffs": torch.ones(3)}, "coeffs"),
        ({"distribution": "uniform"}, "distribution .*'uniform'"),
        ({"out": torch.ones(2)}, "out"),
        ({"out": torch.ones(1, dtype=torch.float64)}, "out .*float32"),
        ({"out": torch.tensor(1.0)}, "out"),
    ],
    ids=name_of,
)
def test_refuses_and_writes_nothing(arguments: dict[str, Any], message: str, device: str) -> None:
    defaults = {"param": torch.ones(3), "seeds": torch.tensor([1, 2]), "coeffs": torch.ones(2), "stream": 0}
    call = on_device({**defaults, **arguments}, device)
    op = torch.ops.mobizo.zo_update.out if "out" in call else ops.zo_update
    with pytest.raises(RuntimeError, match=f"mobizo::zo_update: .*{message}"):
        op(**call)
    if device == "cpu":
        assert bool((call["param"] == 1).all())
        assert "out" not in call or bool((call["out"] == 1).all())
